"""What is read may be damaged, of another version, or a stranger's: it is named, with the way on; none is executed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.model import Finetuning, ModelConfig, Pretraining
from gpt1cli.config.schema import UserError
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.evaluation import predictor
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import load, locate
from gpt1cli.runs import files
from gpt1cli.runs.console import Progress
from gpt1cli.text import bpe, corpus, documents
from gpt1cli.training import checkpoint
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import State

SMALL = ModelConfig("small", 1, 16, 2, 32, 16, 0.0, 0.0, 0.0, 1e-5, 0.02, Pretraining(4, 16, 1e-3, 2), Finetuning(1e-3))
TOKENIZER = TokenizerConfig("bpe", "corpus", None, 9)
VOCABULARY = bpe.train({"abcdefghij": 3, "klmnopqrst": 2}, merges=9)
FILES = ("model.safetensors", "training.safetensors", "state.json", "config.json", "vocab.json", "merges.txt")


def optimizer() -> Optimizer:
    model = Transformer(SMALL, len(VOCABULARY))
    return Optimizer(model, OptimizerConfig("adamw", 0.9, 0.999, 1e-8, 0.01, 1.0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 2, 4 and 6, the best of them 4."""
    folder, trained, model = tmp_path / "run", optimizer(), Transformer(SMALL, len(VOCABULARY))
    folder.mkdir()
    about = checkpoint.description(SMALL, TOKENIZER, VOCABULARY, model)
    for step in (2, 4, 6):
        checkpoint.save(folder, State(step, best_step=min(step, 4)), trained, about, VOCABULARY, keep=(2,))
    return folder


def flip(path: Path, at: float = 0.7) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


HARMS = {"flipped": flip, "cut": cut, "missing": Path.unlink}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_zlib(run):
    folder = run / "checkpoints" / "6"
    told = json.loads((folder / "checksums.json").read_text())
    assert told == {name: f"{zlib.crc32((folder / name).read_bytes()):08x}" for name in FILES}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_last_checkpoint_names_the_file_and_the_older_ones(run, name, harm):
    HARMS[harm](run / "checkpoints" / "6" / name)
    with pytest.raises(UserError) as refused:
        checkpoint.resume(run, optimizer())
    told = str(refused.value)
    assert f"last/{name}" in told and "whole are the checkpoints 4, 2" in told
    os.remove(run / "checkpoints" / "last")  # what the message says: ln -sfn 4 RUN/checkpoints/last
    assert f"`ln -sfn 4 {run}/checkpoints/last`" in told
    (run / "checkpoints" / "last").symlink_to("4")
    assert checkpoint.resume(run, optimizer()).step == 4  # type: ignore[union-attr]


def test_of_the_older_checkpoints_the_damaged_ones_are_not_named(run):
    cut(run / "checkpoints" / "6" / "model.safetensors")
    flip(run / "checkpoints" / "4" / "model.safetensors")
    with pytest.raises(UserError, match="whole are the checkpoints 2: "):
        checkpoint.resume(run, optimizer())
    shutil.rmtree(run / "checkpoints" / "2")
    with pytest.raises(UserError, match="no other checkpoint of its run is whole"):
        checkpoint.resume(run, optimizer())


def test_a_last_that_leads_nowhere_is_no_fresh_start(run):
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(UserError, match="leads to 6, which is missing; whole are the checkpoints 4, 2"):
        checkpoint.resume(run, optimizer())


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "merges.txt"])
def test_weights_and_tokenizer_are_held_against_their_checksums(run, name, harm):
    HARMS[harm](run / "checkpoints" / "4" / name)
    with pytest.raises(UserError, match=rf"checkpoints/4/{name}: (damaged|missing).*: name one of them"):
        load.load(str(run), None, "")
    load.load(str(run / "checkpoints" / "6"), None, "")


def test_a_checkpoint_of_an_older_gpt1_has_no_checksums_and_is_read(run):
    (run / "checkpoints" / "6" / "checksums.json").unlink()
    assert checkpoint.resume(run, optimizer()).step == 6  # type: ignore[union-attr]
    assert len(load.load(str(run / "checkpoints" / "6"), None, "")[1]) == len(VOCABULARY)


def rewritten(path: Path, **changes: object) -> None:
    """A file of JSON with other values, whose checksum was made anew: written so, not damaged."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (path.parent / "checksums.json").unlink()
    files.write(path.parent)


def test_what_a_newer_gpt1_wrote_says_so(run):
    rewritten(run / "checkpoints" / "4" / "config.json", format=2)
    with pytest.raises(UserError, match=r"format 2; this gpt1 reads checkpoints of format 1, .*newer.*: update gpt1"):
        locate.described(locate.find(str(run)))
    rewritten(run / "checkpoints" / "6" / "state.json", phase_of_the_moon=3)
    with pytest.raises(UserError, match="phase_of_the_moon"):
        checkpoint.resume(run, optimizer())


@pytest.mark.parametrize("best", ["../../elsewhere", "/", [1]])
def test_a_strangers_state_names_no_place_outside(run, best):
    rewritten(run / "checkpoints" / "6" / "state.json", best_step=best)
    with pytest.raises(UserError, match="best_step"):
        checkpoint.resume(run, optimizer())
    assert os.readlink(run / "checkpoints" / "best") == "4"


def test_a_tokenizer_of_another_size_is_refused(run):
    other = bpe.train({"abcdefghij": 3, "klmnopqrst": 2}, merges=3)
    assert len(other) < len(VOCABULARY)
    folder, body = run / "checkpoints" / "6", Transformer(SMALL, len(VOCABULARY))
    weights = {f"body.{name}": p.detach() for name, p in body.named_parameters()}
    head = {"head.weight": torch.zeros(2, SMALL.d_model), "head.bias": torch.zeros(2)}
    from safetensors.torch import save_file

    save_file(weights | head, folder / "model.safetensors")
    rewritten(folder / "config.json", task={"choices": []})
    predictor.load_tuned(folder)
    other.save(folder)
    with pytest.raises(UserError, match="checksum"):
        predictor.load_tuned(folder)
    rewritten(folder / "config.json")
    with pytest.raises(UserError, match=f"its tokenizer has {len(other)} entries, but its model was trained with"):
        predictor.load_tuned(folder)


# --- shards -----------------------------------------------------------------------------------------------------------

QUIET = functools.partial(Progress, None, mode="none")


def shards(tmp_path: Path) -> corpus.Shards:
    (tmp_path / "book.txt").write_text("abc klm abcdefghij\n" * 200)
    source = documents.find(
        CorpusConfig("text", "text", str(tmp_path / "book.txt"), "text", None, None, "rows", 64), None, str(tmp_path)
    )
    return corpus.prepare(source, "text", VOCABULARY, str(tmp_path / "cache"), QUIET)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "meta.json"])
def test_a_damaged_shard_is_named_and_prepared_again_once_removed(tmp_path, name, harm):
    whole = shards(tmp_path)
    if (name, harm) == ("meta.json", "flipped"):
        (whole.folder / name).write_text((whole.folder / name).read_text().replace('"format": 1', '"format": 5'))
    else:
        HARMS[harm](whole.folder / name)
    with pytest.raises(UserError, match=f"{name}.*remove {whole.folder}, and it is prepared again"):
        shards(tmp_path)
    shutil.rmtree(whole.folder)
    ids = VOCABULARY.encode("abc klm abcdefghij\n" * 200)
    again = shards(tmp_path)
    assert [*again.train, *again.valid] == list(ids)


def test_a_shard_is_read_through_once_and_not_at_every_start(tmp_path, monkeypatch):
    folder = shards(tmp_path).folder
    read: list[Path] = []

    def of(path: Path, size: int | None = None, original=files.of) -> str:
        read.append(path)
        return original(path, size)

    monkeypatch.setattr(files, "of", of)
    shards(tmp_path)
    assert read == []
    os.utime(folder / "valid.bin", ns=(1, 1))  # as if another file had been put in its place
    shards(tmp_path)
    assert read == [folder / "train.bin", folder / "valid.bin"]
    state = (folder / "train.bin").stat()
    flip(folder / "train.bin")
    os.utime(folder / "train.bin", ns=(state.st_atime_ns, state.st_mtime_ns))  # on the disk itself
    shards(tmp_path)
    with pytest.raises(UserError, match=r"train\.bin: damaged"):  # by gpt1 prepare
        corpus.check(folder, corpus.described(folder))


def test_shards_of_an_older_gpt1_have_no_checksums_and_are_read(tmp_path):
    folder = shards(tmp_path).folder
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksums"]
    (folder / "meta.json").write_text(json.dumps(meta))
    os.utime(folder / "train.bin", ns=(1, 1))
    assert len(shards(tmp_path).train) == meta["train_tokens"]
