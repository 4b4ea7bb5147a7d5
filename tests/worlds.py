"""What several test files build: a very small model, the words for a run of one, data sets, exact arithmetic."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers import OpenAIGPTConfig

from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import build
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.models.batch import Item

CONF = Path(__file__).resolve().parent.parent / "conf"
NO_DROPOUT = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
SMALL = (
    "model=tiny", "model.n_layer=2", "model.d_model=16", "model.n_head=2", "model.d_ff=32", "model.n_positions=32",
    "model.lstm_units=24", "model.pretraining.context=32", "batch_size=4", "runtime.threads=1", "runtime.progress=none",
)  # fmt: skip
STORY = "the cat sat on the mat . the dog ran to the cat . a bird sang , and the dog sat down .\n"
SHAPE = {"n_layer": 2, "d_model": 24, "n_head": 4, "d_ff": 96, "n_positions": 20}


def read(path: str) -> dict[str, Any]:
    """A file of conf/ as plain data."""
    return yaml.safe_load((CONF / path).read_text())


def model_config(option: str = "tiny", **changes: Any) -> ModelConfig:
    """conf/model/<option>.yaml with changes."""
    return dataclasses.replace(build(ModelConfig, read(f"model/{option}.yaml")), **changes)


def peer_config(rows: int, **changes: Any) -> OpenAIGPTConfig:
    """SHAPE, as transformers names it."""
    names = {"n_positions": "n_positions", "n_embd": "d_model", "n_layer": "n_layer", "n_head": "n_head"}
    return OpenAIGPTConfig(vocab_size=rows, **{theirs: SHAPE[ours] for theirs, ours in names.items()}, **changes)


def optimizer_config(**changes: Any) -> OptimizerConfig:
    """conf/optimizer/adamw.yaml with changes."""
    return dataclasses.replace(build(OptimizerConfig, read("optimizer/adamw.yaml")), **changes)


def stir(model: torch.nn.Module, std: float = 0.1) -> None:
    """Move every parameter off its initial value, so that biases and gains count too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


def item(tokens: list[int], label: int | float | None = None) -> Item:
    """An item of one sequence."""
    return Item.from_sequences([tokens], label)


def tokens_of(item: Item) -> list[int]:
    """The tokens of an item of one sequence."""
    (tail,) = item.continuations
    return tail.tolist()


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Whole fp32 products on one thread."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])


def data_set(folder: Path, subsets: dict[str, dict[str, dict]]) -> Path:
    """A data set as the hub holds it: subset -> split -> columns, in parquet, with the README that lists them."""
    lines = ["---", "configs:"]
    for subset, splits in subsets.items():
        lines += [f'- config_name: "{subset}"', "  data_files:"]
        for split, columns in splits.items():
            (folder / subset).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {subset}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
