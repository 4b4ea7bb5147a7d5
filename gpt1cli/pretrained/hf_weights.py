"""Weights of GPT-1 and GPT-2 in and out: transformers' files (openai-community/openai-gpt, gpt2), OpenAI's shards in.

The published file stores each linear layer transposed (a 1x1 convolution), its keys with or without the prefix
`transformer.`, and beside the weights some buffers, a tied output table or a head, which are passed over by name.
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

NAMES = {  # ours -> theirs, inside a block, in the order of OpenAI's arrays; the second value: stored transposed
    "query_key_value": ("attn.c_attn", True),
    "attention_output": ("attn.c_proj", True),
    "attention_norm": ("ln_1", False),
    "expand": ("mlp.c_fc", True),
    "contract": ("mlp.c_proj", True),
    "feed_forward_norm": ("ln_2", False),
}
OUTSIDE = {  # theirs -> ours, outside the blocks
    "tokens_embed.weight": "tokens.weight",  # GPT-1
    "positions_embed.weight": "positions.weight",
    "wte.weight": "tokens.weight",  # GPT-2
    "wpe.weight": "positions.weight",
    "ln_f.weight": "final_norm.weight",
    "ln_f.bias": "final_norm.bias",
}
TABLES = ("tokens_embed.weight", "wte.weight")
NORM_BIAS = "last_norm_bias"  # in a file's metadata
PASSED_OVER = re.compile(
    r"h\.\d+\.attn\.(masked_)?bias|position_ids|lm_head\.weight|score\.weight|multiple_choice_head\.summary\.(weight|bias)"
)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under our names; names that we do not know stay as they are, so that `fill` lists them.

    UserError for an output table that is not the input table.
    """
    head, *tables = (tensors.get(name, tensors.get(f"transformer.{name}")) for name in ("lm_head.weight", *TABLES))
    for name, table in zip(TABLES, tables, strict=True):
        if head is not None and table is not None and not torch.equal(head, table):
            raise UserError(f"its lm_head.weight is another table than its {name}: GPT has one for both")
    theirs = {block_name: (our_name, flip) for our_name, (block_name, flip) in NAMES.items()}
    found = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("transformer.")
        if PASSED_OVER.fullmatch(bare):
            continue
        block = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", bare)
        if block and block[2] in theirs:
            our_name, flip = theirs[block[2]]
            tensor = tensor.T if flip and block[3] == "weight" else tensor
            bare = f"blocks.{block[1]}.{our_name}.{block[3]}"
        found[OUTSIDE.get(bare, bare)] = tensor.float().contiguous()
    return found


def to_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of a Transformer under transformers' names, with the prefix that it writes itself."""
    second = "final_norm.weight" in weights
    theirs = {ours: name for name, ours in OUTSIDE.items() if second != name.endswith("_embed.weight")}
    found = {}
    for name, tensor in weights.items():
        if block := re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(weight|bias)", name):
            part, flip = NAMES[block[2]]
            tensor = tensor.T if flip and block[3] == "weight" else tensor
            found[f"transformer.h.{block[1]}.{part}.{block[3]}"] = tensor.detach().contiguous()
        else:
            found[f"transformer.{theirs[name]}"] = tensor.detach().contiguous()
    return found


def read_shards(folder: Path) -> dict[str, Tensor]:
    """OpenAI's params_*.npy, one flat vector in pieces, cut up by params_shapes.json, under our names.

    UserError where a piece is missing or damaged, or their sum is another than that of the shapes.
    """
    shapes = json.loads((folder / hf_config.SHAPES).read_bytes())
    paths = sorted(folder.glob("params_*.npy"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    flat = np.concatenate([np.empty(0, np.float32), *map(_piece, paths)])
    sizes = [math.prod(shape) for shape in shapes]
    if len(flat) != sum(sizes):
        raise UserError(
            f"{folder}: {len(paths)} files params_*.npy hold {len(flat):,} numbers, {hf_config.SHAPES} wants"
            f" {sum(sizes):,}; the released ones are params_0.npy to params_9.npy"
        )
    parts = [f"{part}.{kind}" for part, _ in NAMES.values() for kind in ("weight", "bias")]
    layers = range((len(shapes) - 2) // len(parts))
    names = ["positions_embed.weight", "tokens_embed.weight", *(f"h.{i}.{part}" for i in layers for part in parts)]
    arrays = np.split(flat, np.cumsum(sizes)[:-1])
    tensors = {
        name: torch.from_numpy(array.reshape([n for n in shape if n != 1] if len(shape) == 3 else shape))
        for name, array, shape in zip(names, arrays, shapes, strict=True)  # (1, in, out): a convolution of width 1
    }
    return from_published(tensors)


def _piece(path: Path) -> np.ndarray:
    """The numbers of one .npy file, flat, fp32; a pickle in it is not opened."""
    try:
        return np.load(path, allow_pickle=False).ravel().astype(np.float32, casting="same_kind", copy=False)
    except Exception as error:  # numpy raises a dozen classes over what is no array of numbers
        raise UserError(f"{path}: no readable array ({type(error).__name__}); fetch it again") from error


def write_published(path: Path, tensors: Mapping[str, Tensor], last_norm_bias: Tensor | None) -> None:
    """Write transformers' model.safetensors; beside it, where that has been changed, the last norm's own bias [D]."""
    kept = {} if last_norm_bias is None else {NORM_BIAS: json.dumps(last_norm_bias.tolist())}
    save_file(dict(tensors), path, metadata={"format": "pt", **kept})


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or pytorch_model.bin, under our names; no code in the file is executed.

    UserError where the file is damaged or holds more than tensors.
    """
    norm_bias = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if kept := (file.metadata() or {}).get(NORM_BIAS):
                    norm_bias = torch.tensor(json.loads(kept), dtype=torch.float32)
            tensors = load_file(path)
        else:
            # NOTE weights_only named here wins over TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in the environment
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # the file may be sound
        raise
    except Exception as error:  # torch raises a dozen classes over what is no such file
        raise UserError(f"{path}: no readable file of weights ({type(error).__name__}); fetch it again") from error
    kinds = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in kinds):
        raise UserError(f"{path}: no file of weights, but of other things; fetch it again")
    weights = from_published(tensors)
    if norm_bias is not None:
        weights[last_norm(weights)] = norm_bias
    return weights


def last_norm(weights: Mapping[str, Tensor]) -> str:
    """The name of the bias of the norm that nothing follows: of the last block, with norm=pre behind it."""
    blocks = sum(name.endswith("feed_forward_norm.bias") for name in weights)
    return "final_norm.bias" if "final_norm.bias" in weights else f"blocks.{blocks - 1}.feed_forward_norm.bias"
