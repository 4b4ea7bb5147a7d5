"""A training run's state on disk: whole or not there at all, and plain data only.

    checkpoints/<step>/  model.safetensors     the fp32 weights
                         training.safetensors  Adam's moments, the random generators
                         state.json            the loop's own state
                         config.json           shape, vocabulary, tokenizer, labels: all it takes to build the model
                         vocab.json merges.txt
                         checksums.json        of all these files, held against them when they are read
    checkpoints/last, best                     relative links, swapped by rename

A checkpoint is written aside, synced and renamed; nothing that is linked is ever touched again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt1cli import distributed
from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import InputError, build
from gpt1cli.data import hub
from gpt1cli.models.create import fresh
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Transformer
from gpt1cli.optim import Optimizer
from gpt1cli.pretrained import hf_config, locate
from gpt1cli.pretrained.hf_weights import read_published, read_shards
from gpt1cli.pretrained.locate import READ, TRAINING, _check_read, _way_on
from gpt1cli.runs.files import check, read_json, write, writing
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer

COPY = "copy vocab.json and merges.txt again from where the run was"


@dataclasses.dataclass
class State:
    """Where a training run stands: everything of the loop that is no tensor."""

    step: int = 0  # updates done
    seconds: float = 0.0  # of training, over all sessions
    tokens: int = 0  # trained on
    halvings: int = 0  # of the micro-batch, because memory ran out
    best_step: int | None = None
    best_score: float | None = None
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    unreported: list[dict[str, float]] = dataclasses.field(
        default_factory=list
    )  # updates since the last line of metrics


def description(
    model: ModelConfig, tokenizer: TokenizerConfig, vocabulary: Tokenizer, body: LanguageModel, **more: Any
) -> dict[str, Any]:
    """What config.json says: all that is needed to build the model again and to read its text."""
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": dataclasses.asdict(tokenizer),
        "vocabulary": len(vocabulary),
        "tables": vocabulary.tables,
        "special_rows": body.tokens.num_embeddings - len(vocabulary),
        **more,
    }


def save(
    run: Path,
    state: State,
    optimizer: Optimizer,
    description: Mapping[str, Any],
    vocabulary: Tokenizer,
    keep: Iterable[int],
) -> None:
    """Write the checkpoint of state.step, swap the links, and drop those that are neither linked nor to be kept.

    Of several processes all take part, as each may hold a part of every tensor; the first one writes.
    """
    weights, moments = optimizer.weights(), optimizer.state()
    if distributed.rank():
        return
    folder = run / "checkpoints"
    with _aside(folder, state.step) as aside:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, aside / "model.safetensors")
        save_file({**moments, **_generators()}, aside / TRAINING)
        (aside / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
        (aside / "config.json").write_text(json.dumps({"format": locate.FORMAT, **description}, indent=1))
        vocabulary.save(aside)
        write(aside)
        for file in aside.iterdir():
            _sync(file)
        _sync(aside)
        _remove(folder / str(state.step))  # left by a run that was killed after this rename and before the links
        aside.rename(folder / str(state.step))
        _sync(folder)
        _link(folder / "last", state.step)
        if state.best_step == state.step:
            _link(folder / "best", state.step)
    links = [folder / name for name in ("last", "best") if (folder / name).is_symlink()]
    wanted = {*(link.name for link in links), *map(os.readlink, links), *map(str, keep)}
    for old in folder.iterdir():  # earlier checkpoints, and what a killed run left half done
        if old.name not in wanted:
            _remove(old)


@contextlib.contextmanager
def _aside(folder: Path, step: int) -> Iterator[Path]:
    """A folder to write a checkpoint into; where that fails it goes, as it holds the room that the next try needs."""
    aside = folder / f".{step}-{os.getpid()}"
    with writing(folder / str(step)):
        try:
            folder.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def check_resumable(run: str | None) -> None:
    """InputError for a run of which no more than its best weights were kept, as a study does: nothing can go on."""
    folder = Path(run or ".") / "checkpoints"
    if run and (folder / "best").exists() and not (folder / "last").exists():
        raise InputError(f"resume={run}: only its best weights were kept, it cannot go on; init={run} starts from them")


def resume(run: Path, optimizer: Optimizer) -> State | None:
    """Put a run's last checkpoint into the optimizer, its model and the generators; None where there is none yet.

    InputError for one that is not whole, or is not of this run's model, names the file and the whole ones before it.
    """
    last = run / "checkpoints" / "last"
    if not last.exists():
        if last.is_symlink():
            raise InputError(f"{last}: it leads to {os.readlink(last)}, which is missing; {_way_on(last)}")
        return None
    check_whole(last)
    state = read_state(last / "state.json")
    training = read_tensors(last / TRAINING)
    _restore_generators(training)
    optimizer.restore(read_tensors(last / "model.safetensors"), training)
    best = run / "checkpoints" / str(state.best_step)
    if state.best_step is not None and best.is_dir() and not distributed.rank():
        _link(run / "checkpoints" / "best", state.best_step)  # a kill may have come between the two links
    return state


def read_state(path: Path) -> State:
    """Where a run stood. InputError where the file is damaged, or tells what this gpt1 does not know."""
    try:
        return build(State, read_json(path))
    except InputError as error:
        raise InputError(f"{path}: no state of a run that this gpt1 knows:\n{error}") from None


def check_whole(folder: Path) -> None:
    """InputError where one of the files it takes to go on from a checkpoint is missing or damaged."""
    for name in (*READ, "state.json", TRAINING):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; {_way_on(folder)}")
    check(folder, (*READ, "state.json", TRAINING), _way_on(folder))






def _generators() -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(training: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(training["generator/cpu"])
    if torch.cuda.is_available() and "generator/cuda" in training:
        torch.cuda.set_rng_state(training["generator/cuda"])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(link: Path, step: int) -> None:
    aside = link.with_name(f".{link.name}-{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(str(step))
    aside.rename(link)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that half of one is never found under it."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        doomed = folder.with_name(f".removed-{folder.name.lstrip('.')}-{os.getpid()}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; InputError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; the checkpoint is not whole") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error}); use another checkpoint") from error


def load(init: str, hub_folder: str | None, cache: str) -> tuple[LanguageModel, Tokenizer]:
    """The language model and the tokenizer that init names, fp32, on the CPU, without any head.

    `init` is `openai` or `gpt2`, a run or checkpoint folder, an exported folder, or a folder of OpenAI's npy shards.
    """
    folder = _published_folder(init, hub_folder, cache) if init in hf_config.REPOS else locate.find(init)
    config = locate.described(folder)
    _check_read(folder)
    rows, vocabulary = config["vocabulary"] + config["special_rows"], bpe.load(folder)
    if len(vocabulary) > rows:
        raise InputError(f"{folder}: its tokenizer has {len(vocabulary)} entries, its model {rows} rows for them")
    _check_tables(folder, config, vocabulary)
    body = fresh(build(ModelConfig, config["model"]), rows)
    fill(body, _body_weights(folder), str(folder))
    return body, vocabulary


def _body_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a language model under our names, whoever wrote the folder."""
    if hf_config.is_shards(folder):
        return read_shards(folder)
    if hf_config.is_transformers(read_json(folder / "config.json")):
        paths = [folder / name for name in hub.WEIGHTS]
        if path := next(filter(Path.is_file, paths), None):
            return read_published(path)
        raise InputError(f"{folder}: no {' or '.join(hub.WEIGHTS)} there")
    weights = {name.removeprefix("body."): t for name, t in read_tensors(folder / "model.safetensors").items()}
    return {name: t for name, t in weights.items() if not name.startswith("head.")}




def _check_tables(folder: Path, config: Mapping[str, Any], vocabulary: Tokenizer) -> None:
    """InputError where the tokenizer is another than the model's, though of the same size: every id means another word.

    What others wrote, or a gpt1 before there were such digests, cannot tell.
    """
    if config.get("tables", vocabulary.tables) != vocabulary.tables:
        raise InputError(f"{folder}: its tokenizer is another one than its model was trained with; {COPY}")




def _published_folder(init: str, hub_folder: str | None, cache: str) -> Path:
    """Where the published files lie, all of them fetched."""
    repo = hf_config.REPOS[init]
    files = [hub.file(repo, name, hub_folder, cache) for name in ("config.json", hub.WEIGHTS)]
    load_tokenizer(init, hub_folder, cache)
    return files[0].parent


def load_tokenizer(init: str, hub_folder: str | None, cache: str) -> Tokenizer:
    """The tokenizer that init names, without its weights."""
    if init not in hf_config.REPOS:
        return bpe.load(locate.find(init))
    files = [hub.file(hf_config.REPOS[init], name, hub_folder, cache) for name in ("vocab.json", "merges.txt")]
    return bpe.load(files[0].parent)


def transfer(into: Transformer, trained: Transformer, layers: int) -> None:
    """Copy the embeddings and the first `layers` blocks (paper, section 5, Figure 2 left)."""
    with torch.no_grad():
        into.tokens.weight.copy_(trained.tokens.weight)
        into.positions.weight.copy_(trained.positions.weight)
    for ours, theirs in zip(into.blocks[:layers], trained.blocks[:layers], strict=True):
        ours.load_state_dict(theirs.state_dict())
    if layers == len(into.blocks):  # the norm after them is that of the last one's states
        into.final_norm.load_state_dict(trained.final_norm.state_dict())


def fill(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into a model, every tensor matched by name and shape; InputError lists what does not match."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    wrong = [f"  {name}: wanted {wanted[name]}, missing" for name in wanted if name not in given]
    wrong += [f"  {name}: {given[name]}, not wanted" for name in given if name not in wanted]
    wrong += [f"  {n}: wanted {wanted[n]}, found {given[n]}" for n in wanted if n in given and wanted[n] != given[n]]
    if wrong:
        more = [f"  ... and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise InputError("\n".join([f"{origin}: the weights do not fit the model:", *wrong[:10], *more]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
