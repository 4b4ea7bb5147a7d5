"""Write and resume checkpoints: weights, optimizer and training state, random generators. Folders appear complete."""

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
from gpt1cli.pretrained.locate import MODEL_FILES, TRAINING_FILE, recovery_hint
from gpt1cli.runs.files import check_checksums, name_write_errors, read_json, write_checksums
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import collective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import TrainingState


def model_description(
    model: ModelConfig, tokenizer: TokenizerConfig, vocabulary: Tokenizer, body: LanguageModel, **more: Any
) -> dict[str, Any]:
    """Return the content of config.json: everything needed to rebuild the model and its tokenizer."""
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": dataclasses.asdict(tokenizer),
        "vocabulary": len(vocabulary),
        "tables": vocabulary.tables_digest,
        "special_rows": body.tokens.num_embeddings - len(vocabulary),
        **more,
    }


def save(
    run: Path,
    state: TrainingState,
    optimizer: Optimizer,
    description: Mapping[str, Any],
    vocabulary: Tokenizer,
    keep: Iterable[int],
) -> None:
    """Write the checkpoint of state.step, update the links, and remove checkpoints that are neither linked nor kept.

    All processes take part, because each may hold a shard of every tensor; rank 0 writes.
    """
    weights, optimizer_state = optimizer.weights(), optimizer.state()
    if collective.rank():
        return
    folder = run / "checkpoints"
    with _temporary_folder(folder, state.step) as temporary:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary / "model.safetensors")
        save_file({**optimizer_state, **_generator_states()}, temporary / TRAINING_FILE)
        (temporary / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
        (temporary / "config.json").write_text(json.dumps({"format": locate.FORMAT, **description}, indent=1))
        vocabulary.save(temporary)
        write_checksums(temporary)
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        _remove_checkpoint(folder / str(state.step))  # from a run that was killed between this rename and the links
        temporary.rename(folder / str(state.step))
        _fsync(folder)
        _replace_link(folder / "last", state.step)
        if state.best_step == state.step:
            _replace_link(folder / "best", state.step)
    links = [folder / name for name in ("last", "best") if (folder / name).is_symlink()]
    names = {*(link.name for link in links), *map(os.readlink, links), *map(str, keep)}
    for old in folder.iterdir():  # earlier checkpoints, and incomplete ones of a killed run
        if old.name not in names:
            _remove_checkpoint(old)


@contextlib.contextmanager
def _temporary_folder(folder: Path, step: int) -> Iterator[Path]:
    """Create a temporary folder for a checkpoint; after a failure it is removed, to free the disk for the next try."""
    temporary = folder / f".{step}-{os.getpid()}"
    with name_write_errors(folder / str(step)):
        try:
            folder.mkdir(exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_resumable(run: str | None) -> None:
    """Raise UserError if only the best weights of a run were kept (as in a study): it cannot be resumed."""
    folder = Path(run or ".") / "checkpoints"
    if run and (folder / "best").exists() and not (folder / "last").exists():
        raise UserError(
            f"resume={run}: only the best weights were kept, so the run cannot continue. To start from them: init={run}"
        )


def resume(run: Path, optimizer: Optimizer) -> TrainingState | None:
    """Load the last checkpoint of a run into the optimizer, its model and the random generators; None if there is none.

    Raises UserError if it is incomplete or of another model, and names the file and earlier complete checkpoints.
    """
    last = run / "checkpoints" / "last"
    if not last.exists():
        if last.is_symlink():
            raise UserError(f"{last}: the link points to {os.readlink(last)}, which is missing; {recovery_hint(last)}")
        return None
    check_complete(last)
    state = read_state(last / "state.json")
    training = read_tensors(last / TRAINING_FILE)
    _restore_generators(training)
    optimizer.restore(read_tensors(last / "model.safetensors"), training)
    best = run / "checkpoints" / str(state.best_step)
    if state.best_step is not None and best.is_dir() and not collective.rank():
        # The run may have been killed between the two links.
        _replace_link(run / "checkpoints" / "best", state.best_step)
    return state


def read_state(path: Path) -> TrainingState:
    """Read state.json. Raises UserError if it is damaged or has keys that this version does not know."""
    try:
        return build(TrainingState, read_json(path))
    except UserError as error:
        raise UserError(f"{path}: not a training state of this gpt1 version:\n{error}") from None


def check_complete(folder: Path) -> None:
    """Raise UserError if a file that resuming needs is missing or damaged."""
    for name in (*MODEL_FILES, "state.json", TRAINING_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; {recovery_hint(folder)}")
    check_checksums(folder, (*MODEL_FILES, "state.json", TRAINING_FILE), recovery_hint(folder))


def _generator_states() -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(training: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(training["generator/cpu"])
    if torch.cuda.is_available() and "generator/cuda" in training:
        torch.cuda.set_rng_state(training["generator/cuda"])


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_link(link: Path, step: int) -> None:
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(str(step))
    temporary.rename(link)


def _remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that an incomplete one never has its name."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        removed = folder.with_name(f".removed-{folder.name.lstrip('.')}-{os.getpid()}")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
