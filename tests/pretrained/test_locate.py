"""What init= and run= name, and reading the config.json of untrusted checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gpt1cli.config import options
from gpt1cli.config.schema import UserError
from gpt1cli.pretrained import locate


def checkpoint(folder: Path, **changes: object) -> Path:
    """Write a checkpoint folder with the tiny model's config.json."""
    conf = options.folder()
    content = {
        "format": 1,
        "model": yaml.safe_load((conf / "model" / "tiny.yaml").read_text()),
        "tokenizer": yaml.safe_load((conf / "tokenizer" / "demo.yaml").read_text()),
        "vocabulary": 1239,
        "special_rows": 0,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


def test_init_resolves_to_best_else_last_or_the_folder_itself(tmp_path):
    run = tmp_path / "run"
    for step in ("10", "20"):
        checkpoint(run / "checkpoints" / step)
    (run / "config.yaml").write_text("{}")
    (run / "checkpoints" / "last").symlink_to("20")
    assert locate.resolve_checkpoint(str(run)) == run / "checkpoints" / "20"
    (run / "checkpoints" / "best").symlink_to("10")
    assert locate.resolve_checkpoint(str(run)) == run / "checkpoints" / "10"
    assert locate.resolve_checkpoint(str(run / "checkpoints" / "20")) == run / "checkpoints" / "20"
    with pytest.raises(UserError, match="no such checkpoint; available: 10, 20, best, last"):
        locate.resolve_checkpoint(str(run / "checkpoints" / "30"))


def test_init_without_a_checkpoint_reports_what_was_found(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    for name, problem in (("run", "a run without a checkpoint yet"), ("x", "no such folder"), ("x" * 300, "no such")):
        with pytest.raises(UserError, match=problem):
            locate.resolve_checkpoint(str(tmp_path / name))
    with pytest.raises(UserError, match="a folder with run in it"):
        locate.resolve_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "format 2; this gpt1 reads checkpoints of format 1"),
        ({"model": None}, "does not describe a model"),
        ({"model": {"n_layer": 2}}, "d_model: missing"),
        ({"vocabulary": "many"}, "vocabulary=many must be an integer of at least 0"),
        ({"special_rows": -1}, "special_rows=-1 must be an integer of at least 0"),
    ],
)
def test_checkpoint_config_without_a_valid_model_is_refused(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        locate.read_checkpoint_config(checkpoint(tmp_path / "c", **changes))
    assert locate.read_checkpoint_config(checkpoint(tmp_path / "good"))["model"]["n_layer"] == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_checkpoint_config_is_refused(tmp_path, content):
    folder = checkpoint(tmp_path / "c")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        locate.read_checkpoint_config(folder)
