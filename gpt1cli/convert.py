"""Published weights of GPT-1 in, under our own names (openai-community/openai-gpt).

The published file stores each linear layer transposed (a 1x1 convolution), its keys with or without the prefix
`transformer.`, and beside the weights some buffers and a tied output table, which are passed over by name.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt1cli.config import Finetuning, InputError, ModelConfig, Pretraining

NAMES = {  # ours -> theirs, inside a block; the second value: stored transposed
    "query_key_value": ("attn.c_attn", True),
    "attention_output": ("attn.c_proj", True),
    "attention_norm": ("ln_1", False),
    "expand": ("mlp.c_fc", True),
    "contract": ("mlp.c_proj", True),
    "feed_forward_norm": ("ln_2", False),
}
PASSED_OVER = re.compile(r"(h\.\d+\.attn\.bias|position_ids|lm_head\.weight)")


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under our names; names that we do not know stay as they are, so that `fill` lists them."""
    ours = {"tokens_embed.weight": "tokens.weight", "positions_embed.weight": "positions.weight"}
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
        found[ours.get(bare, bare)] = tensor.float().contiguous()
    return found


def published_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The published config.json as ours, with the paper's recipes (section 4.1)."""
    return ModelConfig(
        name="openai",
        n_layer=settings["n_layer"],
        d_model=settings["n_embd"],
        n_head=settings["n_head"],
        d_ff=4 * settings["n_embd"],
        n_positions=settings["n_positions"],
        embedding_dropout=settings["embd_pdrop"],
        attention_dropout=settings["attn_pdrop"],
        residual_dropout=settings["resid_pdrop"],
        layer_norm_eps=settings["layer_norm_epsilon"],
        init_std=settings["initializer_range"],
        pretraining=Pretraining(batch_size=64, context=min(512, settings["n_positions"]), lr=2.5e-4, warmup_steps=2000),
        finetuning=Finetuning(lr=6.25e-5),
    )


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or pytorch_model.bin, under our names; no code in the file is executed.

    InputError where the file is damaged or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return from_published(load_file(path))
        return from_published(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path}: no readable file of weights ({type(error).__name__}); fetch it again") from error
