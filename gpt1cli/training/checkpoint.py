"""Write and resume checkpoints: weights, training state and random generators, each folder appearing whole."""

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
from safetensors.torch import save_file
from torch import Tensor

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.load import read_tensors
from gpt1cli.pretrained.locate import READ, TRAINING, _way_on
from gpt1cli.runs.files import check, read_json, write, writing
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import collective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import State


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
    if collective.rank():
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
    """UserError for a run of which no more than its best weights were kept, as a study does: nothing can go on."""
    folder = Path(run or ".") / "checkpoints"
    if run and (folder / "best").exists() and not (folder / "last").exists():
        raise UserError(f"resume={run}: only its best weights were kept, it cannot go on; init={run} starts from them")


def resume(run: Path, optimizer: Optimizer) -> State | None:
    """Put a run's last checkpoint into the optimizer, its model and the generators; None where there is none yet.

    UserError for one that is not whole, or is not of this run's model, names the file and the whole ones before it.
    """
    last = run / "checkpoints" / "last"
    if not last.exists():
        if last.is_symlink():
            raise UserError(f"{last}: it leads to {os.readlink(last)}, which is missing; {_way_on(last)}")
        return None
    check_whole(last)
    state = read_state(last / "state.json")
    training = read_tensors(last / TRAINING)
    _restore_generators(training)
    optimizer.restore(read_tensors(last / "model.safetensors"), training)
    best = run / "checkpoints" / str(state.best_step)
    if state.best_step is not None and best.is_dir() and not collective.rank():
        _link(run / "checkpoints" / "best", state.best_step)  # a kill may have come between the two links
    return state


def read_state(path: Path) -> State:
    """Where a run stood. UserError where the file is damaged, or tells what this gpt1 does not know."""
    try:
        return build(State, read_json(path))
    except UserError as error:
        raise UserError(f"{path}: no state of a run that this gpt1 knows:\n{error}") from None


def check_whole(folder: Path) -> None:
    """UserError where one of the files it takes to go on from a checkpoint is missing or damaged."""
    for name in (*READ, "state.json", TRAINING):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; {_way_on(folder)}")
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
