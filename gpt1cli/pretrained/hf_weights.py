"""Read and write weights of GPT-1 and GPT-2 in transformers' format; read OpenAI's shards.

A published file (openai-community/openai-gpt, gpt2) stores each linear layer transposed (a 1x1 convolution), its keys
with or without the prefix `transformer.`. It also contains buffers, tied output embeddings or a head, which are skipped
by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt1cli.config.schema import UserError
from gpt1cli.pretrained import hf_config

LAYER_NAMES = {  # ours -> theirs inside a layer, in the order of OpenAI's arrays; the second value: stored transposed
    "query_key_value": ("attn.c_attn", True),
    "attention_output": ("attn.c_proj", True),
    "attention_norm": ("ln_1", False),
    "expand": ("mlp.c_fc", True),
    "contract": ("mlp.c_proj", True),
    "feed_forward_norm": ("ln_2", False),
}
OTHER_NAMES = {  # theirs -> ours outside the layers
    "tokens_embed.weight": "tokens.weight",  # GPT-1
    "positions_embed.weight": "positions.weight",
    "wte.weight": "tokens.weight",  # GPT-2
    "wpe.weight": "positions.weight",
    "ln_f.weight": "final_norm.weight",
    "ln_f.bias": "final_norm.bias",
}
EMBEDDING_NAMES = ("tokens_embed.weight", "wte.weight")
NORM_BIAS = "last_norm_bias"  # key in a file's metadata
IGNORED_NAMES = re.compile(
    r"h\.\d+\.attn\.(masked_)?bias|position_ids|lm_head\.weight|score\.weight|multiple_choice_head\.summary\.(weight|bias)"
)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under our names. Unknown names are kept, so that load.load_weights lists them.

    Raises UserError if the output embeddings differ from the input embeddings.
    """
    head, *tables = (
        tensors.get(name, tensors.get(f"transformer.{name}")) for name in ("lm_head.weight", *EMBEDDING_NAMES)
    )
    for name, table in zip(EMBEDDING_NAMES, tables, strict=True):
        if head is not None and table is not None and not torch.equal(head, table):
            raise UserError(f"its lm_head.weight differs from its {name}; GPT uses the same embeddings for both")
    theirs = {block_name: (our_name, transposed) for our_name, (block_name, transposed) in LAYER_NAMES.items()}
    weights = {}
    for name, tensor in tensors.items():
        short_name = name.removeprefix("transformer.")
        if IGNORED_NAMES.fullmatch(short_name):
            continue
        block = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", short_name)
        if block and block[2] in theirs:
            our_name, transposed = theirs[block[2]]
            tensor = tensor.T if transposed and block[3] == "weight" else tensor
            short_name = f"blocks.{block[1]}.{our_name}.{block[3]}"
        weights[OTHER_NAMES.get(short_name, short_name)] = tensor.float().contiguous()
    return weights


def to_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a Transformer under transformers' names, with the prefix that transformers itself writes."""
    is_gpt2 = "final_norm.weight" in weights
    theirs = {ours: name for name, ours in OTHER_NAMES.items() if is_gpt2 != name.endswith("_embed.weight")}
    tensors = {}
    for name, tensor in weights.items():
        if block := re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(weight|bias)", name):
            part, transposed = LAYER_NAMES[block[2]]
            tensor = tensor.T if transposed and block[3] == "weight" else tensor
            tensors[f"transformer.h.{block[1]}.{part}.{block[3]}"] = tensor.detach().contiguous()
        else:
            tensors[f"transformer.{theirs[name]}"] = tensor.detach().contiguous()
    return tensors


def read_shards(folder: Path) -> dict[str, Tensor]:
    """OpenAI's weights under our names: params_*.npy, one flat vector in shards, split by params_shapes.json.

    Raises UserError if a shard is missing or damaged, or the number of values does not match the shapes.
    """
    shapes = json.loads((folder / hf_config.SHAPES_FILE).read_bytes())
    paths = sorted(folder.glob("params_*.npy"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    flat = np.concatenate([np.empty(0, np.float32), *map(_read_shard, paths)])
    sizes = [math.prod(shape) for shape in shapes]
    if len(flat) != sum(sizes):
        raise UserError(
            f"{folder}: {len(paths)} files params_*.npy contain {len(flat):,} numbers, but"
            f" {hf_config.SHAPES_FILE} needs {sum(sizes):,}; the released files are params_0.npy to params_9.npy"
        )
    parts = [f"{part}.{kind}" for part, _ in LAYER_NAMES.values() for kind in ("weight", "bias")]
    layers = range((len(shapes) - 2) // len(parts))
    names = ["positions_embed.weight", "tokens_embed.weight", *(f"h.{i}.{part}" for i in layers for part in parts)]
    arrays = np.split(flat, np.cumsum(sizes)[:-1])
    tensors = {
        name: torch.from_numpy(array.reshape([n for n in shape if n != 1] if len(shape) == 3 else shape))
        for name, array, shape in zip(names, arrays, shapes, strict=True)  # (1, in, out): a convolution of width 1
    }
    return from_published(tensors)


def _read_shard(path: Path) -> np.ndarray:
    """The numbers of one .npy file, flat, fp32. A pickle in it is not loaded."""
    try:
        return np.load(path, allow_pickle=False).ravel().astype(np.float32, casting="same_kind", copy=False)
    except Exception as error:  # numpy raises a dozen classes for an invalid file
        raise UserError(f"{path}: cannot be read as an array ({type(error).__name__}); download it again") from error


def write_published(path: Path, tensors: Mapping[str, Tensor], last_norm_bias: Tensor | None) -> None:
    """Write transformers' model.safetensors; the metadata hold the last norm's bias [D] if the export changed it."""
    metadata = {} if last_norm_bias is None else {NORM_BIAS: json.dumps(last_norm_bias.tolist())}
    save_file(dict(tensors), path, metadata={"format": "pt", **metadata})


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or pytorch_model.bin under our names. No code in the file is executed.

    Raises UserError if the file is damaged or contains anything else than tensors.
    """
    norm_bias = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if stored := (file.metadata() or {}).get(NORM_BIAS):
                    norm_bias = torch.tensor(json.loads(stored), dtype=torch.float32)
            tensors = load_file(path)
        else:
            # NOTE an explicit weights_only overrides TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in the environment
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # the file may be intact
        raise
    except Exception as error:  # torch raises a dozen classes for an invalid file
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}); download it again") from error
    entries = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        raise UserError(f"{path}: contains something other than weights; download it again")
    weights = from_published(tensors)
    if norm_bias is not None:
        weights[last_norm_bias_name(weights)] = norm_bias
    return weights


def last_norm_bias_name(weights: Mapping[str, Tensor]) -> str:
    """The name of the last norm's bias: in the last layer, or with norm=pre after the layers."""
    layers = sum(name.endswith("feed_forward_norm.bias") for name in weights)
    return "final_norm.bias" if "final_norm.bias" in weights else f"blocks.{layers - 1}.feed_forward_norm.bias"
