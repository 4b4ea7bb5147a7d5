"""Load language models and tokenizers from checkpoints, exported folders and published files; plain data only.

The layout of a checkpoint, which training/checkpoint.py writes:

    checkpoints/<step>/  model.safetensors     the fp32 weights
                         training.safetensors  optimizer state, random generators
                         state.json            the training loop's state
                         config.json           shape, vocabulary size, tokenizer, labels: enough to build the model
                         vocab.json merges.txt
                         checksums.json        of all these files, checked when they are read
    checkpoints/last, best                     relative links, replaced by rename

A checkpoint is written to a temporary folder, synced and renamed; a linked one is never changed.
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
from gpt1cli.models.create import create_model
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import hf_config, locate
from gpt1cli.pretrained.hf_weights import read_published, read_shards
from gpt1cli.pretrained.locate import check_model_files
from gpt1cli.runs.files import read_json
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer

COPY_HINT = "copy vocab.json and merges.txt again from the original run"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the checkpoint is incomplete, use another one") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); use another checkpoint") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into a model, matched by name and shape. Raises UserError that lists all mismatches.

    `origin` names the source in the message.
    """
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    present = {name: tuple(t.shape) for name, t in weights.items()}
    mismatches = [f"  {name}: expected {expected[name]}, missing" for name in expected if name not in present]
    mismatches += [f"  {name}: {present[name]}, not expected" for name in present if name not in expected]
    mismatches += [
        f"  {name}: expected {expected[name]}, found {present[name]}"
        for name in expected
        if name in present and expected[name] != present[name]
    ]
    if mismatches:
        more = [f"  ... and {len(mismatches) - 10} more"] if len(mismatches) > 10 else []
        raise UserError("\n".join([f"{origin}: the weights do not fit the model:", *mismatches[:10], *more]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def check_tables_digest(folder: Path, config: Mapping[str, Any], vocabulary: Tokenizer) -> None:
    """Raises UserError if the tokenizer is not the model's, though it has the same size: its ids mean other words.

    Folders written by others or by an older gpt1 have no digest and are not checked.
    """
    if config.get("tables", vocabulary.tables_digest) != vocabulary.tables_digest:
        raise UserError(f"{folder}: its tokenizer is not the one that its model was trained with; {COPY_HINT}")


def load_tokenizer(init: str, hub_folder: str | None, cache: str) -> Tokenizer:
    """The tokenizer that init= names, without loading weights."""
    if init not in hf_config.REPOS:
        return bpe.load(locate.resolve_checkpoint(init))
    files = [hub.find_file(hf_config.REPOS[init], name, hub_folder, cache) for name in ("vocab.json", "merges.txt")]
    return bpe.load(files[0].parent)


def _fetch_published(init: str, hub_folder: str | None, cache: str) -> Path:
    """The folder of the published files, after downloading all of them."""
    repo = hf_config.REPOS[init]
    files = [hub.find_file(repo, name, hub_folder, cache) for name in ("config.json", hub.WEIGHTS)]
    load_tokenizer(init, hub_folder, cache)
    return files[0].parent


def _body_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a language model under our names, from any kind of folder."""
    if hf_config.is_shards(folder):
        return read_shards(folder)
    if hf_config.is_transformers(read_json(folder / "config.json")):
        paths = [folder / name for name in hub.WEIGHTS]
        if path := next(filter(Path.is_file, paths), None):
            return read_published(path)
        raise UserError(f"{folder}: no {' or '.join(hub.WEIGHTS)} in it")
    weights = {name.removeprefix("body."): t for name, t in read_tensors(folder / "model.safetensors").items()}
    return {name: t for name, t in weights.items() if not name.startswith("head.")}


def load_language_model(init: str, hub_folder: str | None, cache: str) -> tuple[LanguageModel, Tokenizer]:
    """The language model and the tokenizer that init= names, fp32, on the CPU, without a head.

    `init` is `openai` or `gpt2`, a run or checkpoint folder, an exported folder, or a folder of OpenAI's npy shards.
    Raises UserError if the files are damaged or do not fit together.
    """
    folder = _fetch_published(init, hub_folder, cache) if init in hf_config.REPOS else locate.resolve_checkpoint(init)
    config = locate.read_checkpoint_config(folder)
    check_model_files(folder)
    rows, vocabulary = config["vocabulary"] + config["special_rows"], bpe.load(folder)
    if len(vocabulary) > rows:
        raise UserError(
            f"{folder}: its tokenizer has a vocabulary size of {len(vocabulary)}, but its model has {rows} rows"
        )
    check_tables_digest(folder, config, vocabulary)
    body = create_model(build(ModelConfig, config["model"]), rows)
    load_weights(body, _body_weights(folder), str(folder))
    return body, vocabulary


def copy_layers(model: Transformer, trained: Transformer, layers: int) -> None:
    """Copy the embeddings and the first `layers` layers (paper, section 5, Figure 2 left)."""
    with torch.no_grad():
        model.tokens.weight.copy_(trained.tokens.weight)
        model.positions.weight.copy_(trained.positions.weight)
    for ours, theirs in zip(model.blocks[:layers], trained.blocks[:layers], strict=True):
        ours.load_state_dict(theirs.state_dict())
    if layers == len(model.blocks):  # the final norm belongs to the last layer's output
        model.final_norm.load_state_dict(trained.final_norm.state_dict())
