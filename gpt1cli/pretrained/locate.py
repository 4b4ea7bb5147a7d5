"""Find and read what init= and run= name, without torch: runs, checkpoints, exported folders, OpenAI's npy shards."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt1cli.config import options
from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build, display
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import WEIGHTS, Requirement, tokenizer_requirements
from gpt1cli.pretrained import hf_config
from gpt1cli.runs.files import CHECKSUMS, check_checksums, read_json
from gpt1cli.runs.folder import is_run
from gpt1cli.runs.record import last_run_date

FORMAT = 1  # of our checkpoints
MODEL_FILES = (
    "config.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
)  # resume= reads state.json and TRAINING_FILE too
TRAINING_FILE = "training.safetensors"
PRETRAIN_RUNS = ("pretrain/*/*", "multirun/pretrain/*/*", "ablation/*/*/cells/*", "multirun/ablation/*/*/cells/*")
TOKENIZER_KEYS = ("source", "repo", "merges", "level")  # fixed by a checkpoint's weights


# --- from init= and run= to a checkpoint folder -----------------------------------------------------------------------


def resolve_checkpoint(init: str, key: str = "init") -> Path:
    """The checkpoint folder that init= (or another key) names: a run's best, else its last, or the folder itself.

    Raises UserError with what was found there and what is allowed.
    """
    root = os.path.expanduser(init)
    if os.path.isfile(os.path.join(root, "config.json")) or hf_config.is_shards(Path(root)):
        return Path(root)
    checkpoints = os.path.join(root, "checkpoints")
    for link in ("best", "last"):
        if os.path.isfile(os.path.join(checkpoints, link, "config.json")):
            target = os.path.join(checkpoints, link)
            # Follow the link now: a run that is still training may replace it while the files are read.
            return Path(checkpoints, os.readlink(target)) if os.path.islink(target) else Path(target)
    if is_run(root):
        problem = "a run without a checkpoint yet"
    elif os.path.isdir(root):
        problem = f"a folder with {_list_folder(root)} in it"
    elif os.path.basename(parent := os.path.dirname(root)) == "checkpoints" and os.path.isdir(parent):
        problem = f"no such checkpoint; available: {_list_folder(parent)}"
    else:
        problem = "a file" if os.path.isfile(root) else "no such folder"
    allowed = "a run folder (its best checkpoint, else its last), RUN/checkpoints/STEP"
    if key == "init":
        published = ", ".join(hf_config.REPOS)
        allowed = f"{published}, none, {allowed}, an exported folder, or a folder of OpenAI's npy shards"
    raise UserError(f"{key}={display(init)}: {problem}\n{key} takes {allowed}")


def _list_folder(folder: str) -> str:
    with contextlib.suppress(OSError):
        return display(", ".join(sorted(os.listdir(folder)))) or "nothing"
    return "unreadable files"


def list_checkpoints(init: str, which: int | str = "best") -> list[str]:
    """The checkpoints of a run that `which` selects, as values for init=: best, last, a step, or all in order.

    For anything else than a run only `best` is allowed. Raises UserError if there is no checkpoint.
    """
    if which == "best":
        return [init] if init in hf_config.REPOS else [str(resolve_checkpoint(init))]
    folder = os.path.join(os.path.expanduser(init), "checkpoints")
    if not os.path.isdir(folder):
        raise UserError(f"checkpoint={which}: {display(init)} is not a run folder with checkpoints")
    if which != "all":
        return [str(resolve_checkpoint(os.path.join(folder, str(which))))]
    steps = sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    if not steps:
        raise UserError(f"checkpoint=all: {display(folder)} contains no checkpoint yet")
    return [os.path.join(folder, str(step)) for step in steps]


def checkpoint_step(checkpoint: str) -> int | None:
    """The step after which a checkpoint was written; None if it does not belong to a run."""
    path = Path(checkpoint).resolve()  # last and best are links
    return int(path.name) if path.parent.name == "checkpoints" and path.name.isdecimal() else None


# --- what a checkpoint's config.json says -----------------------------------------------------------------------------


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """The model, the tokenizer and more from a checkpoint's config.json. Raises UserError with all that is wrong."""
    path = folder / "config.json"
    config = hf_config.shards_config(folder) if hf_config.is_shards(folder) else read_json(path)
    if hf_config.is_transformers(config):
        try:
            return hf_config.checkpoint_config(config)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
    if config.get("format") != FORMAT:
        written, newer = config.get("format"), ""
        if isinstance(written, int) and written > FORMAT:
            newer = "; a newer gpt1 wrote it: update gpt1"
        raise UserError(f"{path}: format {display(written)}; this gpt1 reads checkpoints of format {FORMAT}{newer}")
    model: Any = config.get("model")  # the file may contain anything
    tokenizer: Any = config.get("tokenizer")
    try:
        # with defaults for keys that an older gpt1 did not know
        config["model"] = dataclasses.asdict(build(ModelConfig, model, "model"))
        config["tokenizer"] = dataclasses.asdict(build(TokenizerConfig, tokenizer, "tokenizer"))
    except UserError as error:
        raise UserError(f"{path} does not describe a model and a tokenizer:\n{error}") from error
    for key in ("vocabulary", "special_rows"):
        if type(config.get(key)) is not int or config[key] < 0:
            raise UserError(f"{path}: {key}={display(config.get(key))} must be an integer of at least 0")
    return config


def checkpoint_task(config: Mapping[str, Any], run: str) -> TaskConfig:
    """The task that a checkpoint was fine-tuned on. Raises UserError if its config has no valid task."""
    if not isinstance(config.get("task"), dict):
        raise UserError(f"run={display(run)} is not a fine-tuned run: its checkpoint has no task")
    try:
        return build(TaskConfig, config["task"], "task")
    except UserError as error:
        raise UserError(f"run={display(run)}: the task in its checkpoint is not valid:\n{error}") from error


def init_config(init: str) -> dict[str, dict[str, Any]]:
    """The model and the tokenizer of init= (other than `none`). Raises UserError if it has none."""
    if init not in hf_config.REPOS:
        return read_checkpoint_config(resolve_checkpoint(init))
    model = options.values("model", "base" if init == "openai" else init)
    return {
        "model": dataclasses.asdict(build(ModelConfig, model)),
        "tokenizer": dataclasses.asdict(hf_config.tokenizer_config(init)),
    }


# --- the LSTM of ablation=lstm ----------------------------------------------------------------------------------------


def find_lstm(config: Mapping[str, Any], init: str, init_lstm: str | None, out: str) -> str | None:
    """The LSTM used instead of init: the one named by init_lstm, else the newest finished pretraining run under `out`.

    It must have the size and the tokenizer in `config`. The newest by the date that the run recorded, in UTC: copied
    files have other times. (If the clock was set back between two runs, this may be the older one; the choice is
    reported and recorded, and init_lstm= names another.) Returns None if there is no such run, or init_lstm is `none`.

    Raises UserError if the LSTM named by init_lstm differs.
    """
    if init_lstm == "none":
        return None
    if init_lstm is not None:
        if differences := list(_config_differences(config, init, resolve_checkpoint(init_lstm, "init_lstm"))):
            head = f"init_lstm={display(init_lstm)} is not the LSTM for init={display(init)}:"
            raise UserError("\n".join([head, *differences]))
        return init_lstm
    patterns = [os.path.join(glob.escape(out), pattern, "result.json") for pattern in PRETRAIN_RUNS]
    finished = [path for pattern in patterns for path in glob.glob(pattern)]
    dates = {path: (last_run_date(Path(path).parent), os.path.getmtime(path)) for path in finished}
    for path in sorted(finished, key=lambda path: dates[path], reverse=True):
        folder = os.path.dirname(path)
        with contextlib.suppress(UserError):  # a run without an intact checkpoint cannot be used
            if read_json(Path(path)).get("command") != "pretrain":  # a study's cells include fine-tuning runs
                continue
            if not any(_config_differences(config, init, resolve_checkpoint(folder))):
                return folder
    return None


def _config_differences(config: Mapping[str, Any], init: str, folder: Path) -> Iterator[str]:
    """Differences between the size and tokenizer of a checkpoint and those in `config`, as lines of a message."""
    checkpoint = read_checkpoint_config(folder)
    for group, keys in (("model", ModelConfig.SHAPE_KEYS["lstm"]), ("tokenizer", TOKENIZER_KEYS)):
        for key in keys:
            if (value := checkpoint[group].get(key)) != config[group].get(key):
                yield f"  {group}.{key}={display(value)}, not {display(config[group].get(key))}"
    if init not in hf_config.REPOS:  # the merges may have been trained on another text
        files = (root / "merges.txt" for root in (resolve_checkpoint(init), folder))
        if len({file.read_bytes() for file in files if file.is_file()}) > 1:
            yield "  its tokenizer was trained on another text"


# --- what a run needs from outside ------------------------------------------------------------------------------------


def init_requirements(init: str) -> list[Requirement]:
    """Weights and vocabulary of a published model; nothing for a folder. Raises UserError if that has no checkpoint."""
    if init not in hf_config.REPOS:
        resolve_checkpoint(init)
        return []
    vocabulary = tokenizer_requirements(hf_config.tokenizer_config(init))  # any other init= brings its own tokenizer
    return [dataclasses.replace(need, remedies=()) for need in vocabulary] + weight_requirements(init)


def weight_requirements(init: str) -> list[Requirement]:
    """The published weights, if a run starts from them."""
    if init not in hf_config.REPOS:
        return []
    remedy = "init=RUN: your own model, from gpt1 pretrain corpus=text corpus.path=...; for training also init=none"
    what, repo = f"weights of init={init}", hf_config.REPOS[init]
    return [Requirement(what, repo, None, names, (remedy,)) for names in ("config.json", WEIGHTS)]


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def check_model_files(folder: Path) -> None:
    """Raises UserError if a file needed to load the model of a checkpoint is missing or damaged."""
    if (folder / CHECKSUMS).exists():
        check_checksums(folder, MODEL_FILES, recovery_hint(folder))


def recovery_hint(folder: Path) -> str:
    """What to do about a damaged checkpoint, for a message: the intact checkpoints of its run, latest first."""
    intact, step = [], folder.resolve().name
    for other in folder.parent.iterdir() if folder.parent.name == "checkpoints" else ():
        if other.name.isdecimal() and other.name != step:
            with contextlib.suppress(UserError):
                check_checksums(other, MODEL_FILES, "")
                intact += [other] if all((other / name).is_file() for name in MODEL_FILES) else []
    intact.sort(key=lambda path: -int(path.name))
    if not intact:
        return "no other checkpoint of its run is intact; copy the file again, or train again"
    run, steps = folder.parent.parent, ", ".join(path.name for path in intact)
    if folder.name != "last":
        return f"intact checkpoints in {folder.parent}: {steps}; use one of them"
    resumable = [path for path in intact if _is_resumable(path)]
    resume = (
        f"to continue: `ln -sfn {resumable[0].name} {shlex.quote(str(folder))}`, then resume={run}; "
        if resumable
        else ""
    )
    return f"intact checkpoints: {steps}; {resume}to start a new run from its weights: init={intact[0]}"


def _is_resumable(folder: Path) -> bool:
    with contextlib.suppress(UserError):
        check_checksums(folder, ("state.json", TRAINING_FILE), "")
        return all((folder / name).is_file() for name in ("state.json", TRAINING_FILE))
    return False
