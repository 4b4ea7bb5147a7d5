"""Files that are damaged, of another version, or a stranger's: the message names them and the next step."""

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
from gpt1cli.training.state import TrainingState

SMALL = ModelConfig("small", 1, 16, 2, 32, 16, 0.0, 0.0, 0.0, 1e-5, 0.02, Pretraining(4, 16, 1e-3, 2), Finetuning(1e-3))
TOKENIZER = TokenizerConfig("bpe", "corpus", None, 9)
VOCABULARY = bpe.train({"abcdefghij": 3, "klmnopqrst": 2}, merges=9)
FILES = ("model.safetensors", "training.safetensors", "state.json", "config.json", "vocab.json", "merges.txt")


def make_optimizer() -> Optimizer:
    model = Transformer(SMALL, len(VOCABULARY))
    return Optimizer(model, OptimizerConfig("adamw", 0.9, 0.999, 1e-8, 0.01, 1.0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints 2, 4 and 6; the best is 4."""
    folder, optimizer, model = tmp_path / "run", make_optimizer(), Transformer(SMALL, len(VOCABULARY))
    folder.mkdir()
    description = checkpoint.model_description(SMALL, TOKENIZER, VOCABULARY, model)
    for step in (2, 4, 6):
        checkpoint.save(
            folder, TrainingState(step, best_step=min(step, 4)), optimizer, description, VOCABULARY, keep=(2,)
        )
    return folder


def flip_bit(path: Path, at: float = 0.7) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flipped": flip_bit, "truncated": truncate, "missing": Path.unlink}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checksums_are_crc32(run):
    folder = run / "checkpoints" / "6"
    checksums = json.loads((folder / "checksums.json").read_text())
    assert checksums == {name: f"{zlib.crc32((folder / name).read_bytes()):08x}" for name in FILES}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_last_checkpoint_names_the_file_and_older_checkpoints(run, name, damage):
    DAMAGES[damage](run / "checkpoints" / "6" / name)
    with pytest.raises(UserError) as refused:
        checkpoint.resume(run, make_optimizer())
    message = str(refused.value)
    assert f"last/{name}" in message and "intact checkpoints: 4, 2; to continue: " in message
    os.remove(run / "checkpoints" / "last")  # as the message says: ln -sfn 4 RUN/checkpoints/last
    assert f"`ln -sfn 4 {run}/checkpoints/last`" in message
    (run / "checkpoints" / "last").symlink_to("4")
    assert checkpoint.resume(run, make_optimizer()).step == 4  # type: ignore[union-attr]


def test_damaged_older_checkpoints_are_not_offered(run):
    truncate(run / "checkpoints" / "6" / "model.safetensors")
    flip_bit(run / "checkpoints" / "4" / "model.safetensors")
    with pytest.raises(UserError, match="intact checkpoints: 2; "):
        checkpoint.resume(run, make_optimizer())
    shutil.rmtree(run / "checkpoints" / "2")
    with pytest.raises(UserError, match="no other checkpoint of its run is intact"):
        checkpoint.resume(run, make_optimizer())


def test_broken_last_link_is_refused(run):
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(UserError, match="to 6, which is missing; intact checkpoints: 4, 2"):
        checkpoint.resume(run, make_optimizer())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "merges.txt"])
def test_weights_and_tokenizer_are_checked_by_checksum(run, name, damage):
    DAMAGES[damage](run / "checkpoints" / "4" / name)
    with pytest.raises(
        UserError, match=rf"checkpoints/4/{name}: (damaged|missing).*intact checkpoints in .*; use one of them"
    ):
        load.load_language_model(str(run), None, "")
    load.load_language_model(str(run / "checkpoints" / "6"), None, "")


def test_checkpoint_without_checksums_of_an_older_gpt1_is_read(run):
    (run / "checkpoints" / "6" / "checksums.json").unlink()
    assert checkpoint.resume(run, make_optimizer()).step == 6  # type: ignore[union-attr]
    assert len(load.load_language_model(str(run / "checkpoints" / "6"), None, "")[1]) == len(VOCABULARY)


def rewrite(path: Path, **changes: object) -> None:
    """Change values in a JSON file and its checksum: written that way, not damaged."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (path.parent / "checksums.json").unlink()
    files.write_checksums(path.parent)


def test_files_of_a_newer_gpt1_are_refused(run):
    rewrite(run / "checkpoints" / "4" / "config.json", format=2)
    with pytest.raises(UserError, match=r"format 2; this gpt1 reads checkpoints of format 1; .*newer.*: update gpt1"):
        locate.read_checkpoint_config(locate.resolve_checkpoint(str(run)))
    rewrite(run / "checkpoints" / "6" / "state.json", phase_of_the_moon=3)
    with pytest.raises(UserError, match="phase_of_the_moon"):
        checkpoint.resume(run, make_optimizer())


@pytest.mark.parametrize("best", ["../../elsewhere", "/", [1]])
def test_best_step_that_is_a_path_is_refused(run, best):
    rewrite(run / "checkpoints" / "6" / "state.json", best_step=best)
    with pytest.raises(UserError, match="best_step"):
        checkpoint.resume(run, make_optimizer())
    assert os.readlink(run / "checkpoints" / "best") == "4"


def test_tokenizer_with_another_vocabulary_size_is_refused(run):
    other = bpe.train({"abcdefghij": 3, "klmnopqrst": 2}, merges=3)
    assert len(other) < len(VOCABULARY)
    folder, body = run / "checkpoints" / "6", Transformer(SMALL, len(VOCABULARY))
    weights = {f"body.{name}": p.detach() for name, p in body.named_parameters()}
    head = {"head.weight": torch.zeros(2, SMALL.d_model), "head.bias": torch.zeros(2)}
    from safetensors.torch import save_file

    save_file(weights | head, folder / "model.safetensors")
    rewrite(folder / "config.json", task={"choices": []})
    predictor.load_fine_tuned(folder)
    other.save(folder)
    with pytest.raises(UserError, match="checksum"):
        predictor.load_fine_tuned(folder)
    rewrite(folder / "config.json")
    with pytest.raises(UserError, match=f"tokenizer has vocabulary size {len(other)}, but the model was trained with"):
        predictor.load_fine_tuned(folder)


# --- shards -----------------------------------------------------------------------------------------------------------

QUIET = functools.partial(Progress, None, mode="none")


def make_shards(tmp_path: Path) -> corpus.Shards:
    (tmp_path / "book.txt").write_text("abc klm abcdefghij\n" * 200)
    source = documents.find_corpus(
        CorpusConfig("text", "text", str(tmp_path / "book.txt"), "text", None, None, "rows", 64), None, str(tmp_path)
    )
    return corpus.prepare_shards(source, "text", VOCABULARY, str(tmp_path / "cache"), QUIET)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "meta.json"])
def test_damaged_shard_is_named_and_prepared_again_after_removal(tmp_path, name, damage):
    first = make_shards(tmp_path)
    if (name, damage) == ("meta.json", "flipped"):
        (first.folder / name).write_text((first.folder / name).read_text().replace('"format": 1', '"format": 5'))
    else:
        DAMAGES[damage](first.folder / name)
    with pytest.raises(UserError, match=f"{name}.*remove {first.folder} to prepare the corpus again"):
        make_shards(tmp_path)
    shutil.rmtree(first.folder)
    ids = VOCABULARY.encode("abc klm abcdefghij\n" * 200)
    second = make_shards(tmp_path)
    assert [*second.train, *second.valid] == list(ids)


def test_shard_checksums_are_computed_only_if_the_file_changed(tmp_path, monkeypatch):
    folder = make_shards(tmp_path).folder
    checked: list[Path] = []

    def record_call(path: Path, size: int | None = None, original=files.file_checksum) -> str:
        checked.append(path)
        return original(path, size)

    monkeypatch.setattr(corpus, "file_checksum", record_call)
    make_shards(tmp_path)
    assert checked == []
    os.utime(folder / "valid.bin", ns=(1, 1))  # as if the file had been replaced
    make_shards(tmp_path)
    assert checked == [folder / "train.bin", folder / "valid.bin"]
    state = (folder / "train.bin").stat()
    flip_bit(folder / "train.bin")
    os.utime(folder / "train.bin", ns=(state.st_atime_ns, state.st_mtime_ns))  # damaged on the disk, same times
    make_shards(tmp_path)
    with pytest.raises(UserError, match=r"train\.bin: damaged"):  # as gpt1 prepare does
        corpus.check_shards(folder, corpus.read_meta(folder))


def test_shards_without_checksums_of_an_older_gpt1_are_read(tmp_path):
    folder = make_shards(tmp_path).folder
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksums"]
    (folder / "meta.json").write_text(json.dumps(meta))
    os.utime(folder / "train.bin", ns=(1, 1))
    assert len(make_shards(tmp_path).train) == meta["train_tokens"]
