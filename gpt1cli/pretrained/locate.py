"""What init= and run= name, told without its weights: a run, a checkpoint, an exported folder, OpenAI's npy shards."""

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
from gpt1cli.data.hub import WEIGHTS, Need, tokenizer_needs
from gpt1cli.pretrained import hf_config, locate
from gpt1cli.pretrained.hf_config import REPOS, tokenizer_config
from gpt1cli.runs.files import FILE, check, read_json
from gpt1cli.runs.folder import is_run
from gpt1cli.runs.record import dated

FORMAT = 1  # of our checkpoints
PRETRAINED = ("pretrain/*/*", "multirun/pretrain/*/*", "ablation/*/*/cells/*", "multirun/ablation/*/*/cells/*")
TOKENIZER = ("source", "repo", "merges", "level")  # what a checkpoint's weights fix of it
TRAINING = "training.safetensors"
READ = ("config.json", "vocab.json", "merges.txt", "model.safetensors")  # of a checkpoint, by all but resume=


def find(init: str, key: str = "init") -> Path:
    """The checkpoint that init= (or another key) names: a run's best, else its last, or a checkpoint folder itself.

    UserError says what was found there and what is expected.
    """
    root = os.path.expanduser(init)
    if os.path.isfile(os.path.join(root, "config.json")) or hf_config.is_shards(Path(root)):
        return Path(root)
    checkpoints = os.path.join(root, "checkpoints")
    for link in ("best", "last"):
        if os.path.isfile(os.path.join(checkpoints, link, "config.json")):
            target = os.path.join(checkpoints, link)
            # The step it leads to now: a run that still trains may swap the link while the files are read.
            return Path(checkpoints, os.readlink(target)) if os.path.islink(target) else Path(target)
    if is_run(root):
        found = "a run without a checkpoint yet"
    elif os.path.isdir(root):
        found = f"a folder with {_names(root)} in it"
    elif os.path.basename(parent := os.path.dirname(root)) == "checkpoints" and os.path.isdir(parent):
        found = f"no such checkpoint; there are {_names(parent)}"
    else:
        found = "a file" if os.path.isfile(root) else "no such folder"
    takes = "a run folder (its best checkpoint, else its last), RUN/checkpoints/STEP"
    if key == "init":
        takes = f"{', '.join(hf_config.REPOS)}, none, {takes}, an exported folder, or a folder of OpenAI's npy shards"
    raise UserError(f"{key}={display(init)}: {found}\n{key} takes {takes}")


def checkpoints(init: str, which: int | str = "best") -> list[str]:
    """The checkpoints that `which` picks of a run, each as init= would name it: best, last, a step, or all, in order.

    What is no run has one, its best. UserError where there is none.
    """
    if which == "best":
        return [init] if init in hf_config.REPOS else [str(find(init))]
    folder = os.path.join(os.path.expanduser(init), "checkpoints")
    if not os.path.isdir(folder):
        raise UserError(f"checkpoint={which}: {display(init)} is no run folder with checkpoints")
    if which != "all":
        return [str(find(os.path.join(folder, str(which))))]
    steps = sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    if not steps:
        raise UserError(f"checkpoint=all: {display(folder)} holds no checkpoint yet")
    return [os.path.join(folder, str(step)) for step in steps]


def step_of(checkpoint: str) -> int | None:
    """The update after which a checkpoint was written; None for what is no run's."""
    path = Path(checkpoint).resolve()  # last and best are links
    return int(path.name) if path.parent.name == "checkpoints" and path.name.isdecimal() else None


def described(folder: Path) -> dict[str, Any]:
    """What a checkpoint's config.json says of its model and tokenizer. UserError lists what is wrong with it."""
    path = folder / "config.json"
    found = hf_config.settings_of_shards(folder) if hf_config.is_shards(folder) else read_json(path)
    if hf_config.is_transformers(found):
        try:
            return hf_config.described(found)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
    if found.get("format") != FORMAT:
        written, newer = found.get("format"), ""
        if isinstance(written, int) and written > FORMAT:
            newer = ", and a newer one wrote it: update gpt1"
        raise UserError(f"{path}: format {display(written)}; this gpt1 reads checkpoints of format {FORMAT}{newer}")
    model: Any = found.get("model")  # anything may stand in a stranger's file
    tokenizer: Any = found.get("tokenizer")
    try:
        # with what an older gpt1 did not know of yet
        found["model"] = dataclasses.asdict(build(ModelConfig, model, "model"))
        found["tokenizer"] = dataclasses.asdict(build(TokenizerConfig, tokenizer, "tokenizer"))
    except UserError as error:
        raise UserError(f"{path} describes no model and tokenizer:\n{error}") from error
    for key in ("vocabulary", "special_rows"):
        if type(found.get(key)) is not int or found[key] < 0:
            raise UserError(f"{path}: {key}={display(found.get(key))} is no count")
    return found


def identity(init: str) -> dict[str, dict[str, Any]]:
    """The model and the tokenizer of init, which is not `none`. UserError where it has none."""
    if init not in hf_config.REPOS:
        return described(find(init))
    model = options.values("model", "base" if init == "openai" else init)
    return {
        "model": dataclasses.asdict(build(ModelConfig, model)),
        "tokenizer": dataclasses.asdict(hf_config.tokenizer_config(init)),
    }


def lstm_for(wanted: Mapping[str, Any], init: str, asked: str | None, out: str) -> str | None:
    """The LSTM that takes the place of init: the one asked for, else the newest finished pretraining under `out`.

    The newest by what the runs recorded, in UTC: files have other times once they were copied. (Where the clock was put
    back between two runs that may be the older one; which it was is told and recorded, and init_lstm= names another.)
    It has the wanted size and tokenizer. None where there is no such run, or `none` was asked for; UserError where
    what was asked for differs.
    """
    if asked == "none":
        return None
    if asked is not None:
        if other := list(_differences(wanted, init, find(asked, "init_lstm"))):
            raise UserError("\n".join([f"init_lstm={display(asked)} is no LSTM for init={display(init)}:", *other]))
        return asked
    places = [os.path.join(glob.escape(out), place, "result.json") for place in PRETRAINED]
    finished = [path for place in places for path in glob.glob(place)]
    age = {path: (dated(Path(path).parent), os.path.getmtime(path)) for path in finished}
    for path in sorted(finished, key=lambda path: age[path], reverse=True):
        folder = os.path.dirname(path)
        with contextlib.suppress(UserError):  # what is no whole run is none to start from
            # a study's cells are fine-tuned too
            if read_json(Path(path)).get("command") == "pretrain" and not any(_differences(wanted, init, find(folder))):
                return folder
    return None


def _differences(wanted: Mapping[str, Any], init: str, folder: Path) -> Iterator[str]:
    """In what a checkpoint's size and tokenizer differ from those that are wanted beside init."""
    found = described(folder)
    for group, keys in (("model", ModelConfig.SHAPES["lstm"]), ("tokenizer", TOKENIZER)):
        for key in keys:
            if (value := found[group].get(key)) != wanted[group].get(key):
                yield f"  {group}.{key}={display(value)}, not {display(wanted[group].get(key))}"
    if init not in hf_config.REPOS:  # merges may have been trained on another text
        files = (root / "merges.txt" for root in (find(init), folder))
        if len({file.read_bytes() for file in files if file.is_file()}) > 1:
            yield "  its tokenizer was trained on another text"


def task_of(described: Mapping[str, Any], run: str) -> TaskConfig:
    """The task that a checkpoint says it was fine-tuned on. UserError where it names none, or none that is whole."""
    if not isinstance(described.get("task"), dict):
        raise UserError(f"run={display(run)} is no fine-tuned run: its checkpoint names no task")
    try:
        return build(TaskConfig, described["task"], "task")
    except UserError as error:
        raise UserError(f"run={display(run)}: its checkpoint describes no task:\n{error}") from error


def _names(folder: str) -> str:
    with contextlib.suppress(OSError):
        return display(", ".join(sorted(os.listdir(folder)))) or "nothing"
    return "unreadable files"


def init_needs(init: str) -> list[Need]:
    """Weights and vocabulary of a published model; of a folder nothing. UserError where that holds no model."""
    if init not in REPOS:
        locate.find(init)
        return []
    vocabulary = tokenizer_needs(tokenizer_config(init))  # which comes with whatever model takes this one's place
    return [dataclasses.replace(need, ways_out=()) for need in vocabulary] + weights_needs(init)


def weights_needs(init: str) -> list[Need]:
    """The published weights, where a run starts from them."""
    if init not in REPOS:
        return []
    way = (
        "init=RUN: a model of your own, from gpt1 pretrain corpus=text corpus.path=... (to train: or init=none, fresh)"
    )
    return [Need(f"weights of init={init}", REPOS[init], None, names, (way,)) for names in ("config.json", WEIGHTS)]


def _way_on(folder: Path) -> str:
    """What to do about a checkpoint that is not whole: the others of its run that are, the latest first."""
    whole, step = [], folder.resolve().name
    for other in folder.parent.iterdir() if folder.parent.name == "checkpoints" else ():
        if other.name.isdecimal() and other.name != step:
            with contextlib.suppress(UserError):
                check(other, READ, "")
                whole += [other] if all((other / name).is_file() for name in READ) else []
    whole.sort(key=lambda path: -int(path.name))
    if not whole:
        return "no other checkpoint of its run is whole; copy the file again, or train again"
    run, steps = folder.parent.parent, ", ".join(path.name for path in whole)
    if folder.name != "last":
        return f"whole are {folder.parent}/ {steps}: name one of them"
    able = [path for path in whole if _resumable(path)]
    again = (
        f"`ln -sfn {able[0].name} {shlex.quote(str(folder))}`, then resume={run}, goes on from there; " if able else ""
    )
    return f"whole are the checkpoints {steps}: {again}init={whole[0]} starts a new run from its weights"


def _resumable(folder: Path) -> bool:
    with contextlib.suppress(UserError):
        check(folder, ("state.json", TRAINING), "")
        return all((folder / name).is_file() for name in ("state.json", TRAINING))
    return False


def _check_read(folder: Path) -> None:
    """UserError where a file of a checkpoint that is about to be read is missing or damaged."""
    if (folder / FILE).exists():
        check(folder, READ, _way_on(folder))
