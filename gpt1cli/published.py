"""GPT-1 as others store it: the folders that transformers reads and writes, and OpenAI's own npy shards.

Here is what can be said of such a folder without its weights; convert.py turns the weights themselves.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt1cli.config import Finetuning, ModelConfig, Pretraining, TokenizerConfig
from gpt1cli.schema import InputError, build, shown

OPENAI = "openai-community/openai-gpt"
MODEL_TYPE = "openai-gpt"  # transformers' name for GPT-1
SHAPES = "params_shapes.json"  # beside OpenAI's params_0.npy ... params_9.npy
OURS = "gpt1"  # key of an exported config.json under which we keep what transformers has no place for
TANH_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")  # of this architecture transformers' "gelu" is the tanh form


def is_shards(folder: Path) -> bool:
    """Whether the folder holds OpenAI's npy shards."""
    return os.path.isfile(folder / SHAPES)


def is_transformers(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of transformers'."""
    return settings.get("model_type") == MODEL_TYPE


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The config.json of transformers as ours, with the paper's recipes (section 4.1)."""
    counts = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
    if missing := [key for key in counts if type(settings.get(key)) is not int]:
        raise InputError(f"its config.json has no {', '.join(missing)}")
    if settings.get("afn", "gelu") not in TANH_GELU:
        raise InputError(f"its config.json has afn={settings['afn']}: only the paper's GELU is built here")
    return ModelConfig(
        name="openai",
        n_layer=settings["n_layer"],
        d_model=settings["n_embd"],
        n_head=settings["n_head"],
        d_ff=4 * settings["n_embd"],
        n_positions=settings["n_positions"],
        embedding_dropout=settings.get("embd_pdrop", 0.1),
        attention_dropout=settings.get("attn_pdrop", 0.1),
        residual_dropout=settings.get("resid_pdrop", 0.1),
        layer_norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        init_std=settings.get("initializer_range", 0.02),
        pretraining=Pretraining(batch_size=64, context=min(512, settings["n_positions"]), lr=2.5e-4, warmup_steps=2000),
        finetuning=Finetuning(lr=6.25e-5),
    )


def settings_of(config: ModelConfig, rows: int) -> dict[str, Any]:
    """The config.json that transformers wants for a model of this shape. InputError where it cannot hold it."""
    if config.architecture != "transformer":
        raise InputError(f"transformers has no class for architecture={config.architecture}")
    if config.d_ff != 4 * config.d_model:
        raise InputError(f"transformers' GPT-1 has d_ff = 4 x d_model, this model {config.d_ff} and {config.d_model}")
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": rows,
        "n_positions": config.n_positions,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "afn": "gelu",
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "layer_norm_epsilon": config.layer_norm_eps,
        "initializer_range": config.init_std,
    }


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What one of our checkpoints would say of itself, from transformers' config.json; InputError where it is wrong."""
    published = model_config(settings)
    tokenizer = TokenizerConfig(name="openai", source="hub", repo=OPENAI, merges=None)
    ours = settings.get(OURS, {})
    special = ours.get("special_rows", 0) if isinstance(ours, dict) else None
    if type(special) is not int or not 0 <= special < settings["vocab_size"]:
        raise InputError(f"its config.json has {OURS}={shown(ours)}, which gpt1 export does not write")
    model = build(ModelConfig, ours.get("model") or dataclasses.asdict(published))
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": dataclasses.asdict(build(TokenizerConfig, ours.get("tokenizer") or dataclasses.asdict(tokenizer))),
        "vocabulary": settings["vocab_size"] - special,
        "special_rows": special,
        **{key: ours[key] for key in ("tables",) if key in ours},
    }


def settings_of_shards(folder: Path) -> dict[str, Any]:
    """The config.json that the shapes of OpenAI's arrays amount to: positions, tokens, then 12 arrays a block."""
    try:
        shapes = json.loads((folder / SHAPES).read_bytes())
        (positions, width), (rows, _), (_, _, three) = shapes[0], shapes[1], shapes[2]
        counts = [count for shape in shapes for count in shape]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"{folder / SHAPES}: no list of the shapes of GPT-1's arrays ({error})") from error
    if not all(type(count) is int and count > 0 for count in counts):
        raise InputError(f"{folder / SHAPES}: a shape holds something else than counts")
    if (len(shapes) - 2) % 12 or three != 3 * width:
        raise InputError(
            f"{folder / SHAPES}: {len(shapes)} arrays, the third {three} wide; wanted are positions and tokens,"
            f" then 12 for each block, the first of them 3 x {width} wide"
        )
    head = 64  # channels: the released code's 12 heads of 768
    if width % head:
        raise InputError(f"{folder / SHAPES}: width {width} is no multiple of {head}, the channels of a head")
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": rows,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": (len(shapes) - 2) // 12,
        "n_head": width // head,
    }
