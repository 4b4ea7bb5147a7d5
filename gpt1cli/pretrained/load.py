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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.data import hub
from gpt1cli.models.create import fresh
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import hf_config, locate
from gpt1cli.pretrained.hf_weights import read_published, read_shards
from gpt1cli.pretrained.locate import _check_read
from gpt1cli.runs.files import read_json
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer

COPY = "copy vocab.json and merges.txt again from where the run was"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the checkpoint is not whole") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); use another checkpoint") from error


def load(init: str, hub_folder: str | None, cache: str) -> tuple[LanguageModel, Tokenizer]:
    """The language model and the tokenizer that init names, fp32, on the CPU, without any head.

    `init` is `openai` or `gpt2`, a run or checkpoint folder, an exported folder, or a folder of OpenAI's npy shards.
    """
    folder = _published_folder(init, hub_folder, cache) if init in hf_config.REPOS else locate.find(init)
    config = locate.described(folder)
    _check_read(folder)
    rows, vocabulary = config["vocabulary"] + config["special_rows"], bpe.load(folder)
    if len(vocabulary) > rows:
        raise UserError(f"{folder}: its tokenizer has {len(vocabulary)} entries, its model {rows} rows for them")
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
        raise UserError(f"{folder}: no {' or '.join(hub.WEIGHTS)} there")
    weights = {name.removeprefix("body."): t for name, t in read_tensors(folder / "model.safetensors").items()}
    return {name: t for name, t in weights.items() if not name.startswith("head.")}


def _check_tables(folder: Path, config: Mapping[str, Any], vocabulary: Tokenizer) -> None:
    """UserError where the tokenizer is another than the model's, though of the same size: every id means another word.

    What others wrote, or a gpt1 before there were such digests, cannot tell.
    """
    if config.get("tables", vocabulary.tables) != vocabulary.tables:
        raise UserError(f"{folder}: its tokenizer is another one than its model was trained with; {COPY}")


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
    """Copy weights into a model, every tensor matched by name and shape; UserError lists what does not match."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    wrong = [f"  {name}: wanted {wanted[name]}, missing" for name in wanted if name not in given]
    wrong += [f"  {name}: {given[name]}, not wanted" for name in given if name not in wanted]
    wrong += [f"  {n}: wanted {wanted[n]}, found {given[n]}" for n in wanted if n in given and wanted[n] != given[n]]
    if wrong:
        more = [f"  ... and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise UserError("\n".join([f"{origin}: the weights do not fit the model:", *wrong[:10], *more]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
