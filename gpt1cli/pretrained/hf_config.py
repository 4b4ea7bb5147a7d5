"""Configurations of GPT-1 and GPT-2 in the formats of others: transformers' folders and OpenAI's npy shards.

This module does not read weights and does not import torch; hf_weights.py converts the weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import Finetuning, ModelConfig, Pretraining
from gpt1cli.config.schema import UserError, build, display

OPENAI_REPO = "openai-community/openai-gpt"
REPOS = {"openai": OPENAI_REPO, "gpt2": "openai-community/gpt2"}  # names for init=, and options of tokenizer=
GPT1_TYPE = "openai-gpt"  # transformers' name for GPT-1
GPT2_TYPE = "gpt2"
CLASS_PREFIXES = {GPT1_TYPE: "OpenAIGPT", GPT2_TYPE: "GPT2"}  # transformers' class names begin with it
SHAPES_FILE = "params_shapes.json"  # in the folder of OpenAI's params_0.npy ... params_9.npy
EXPORT_KEY = "gpt1"  # key of an exported config.json that holds what transformers has no key for
TANH_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")  # for GPT-1, transformers' "gelu" is the tanh form too
SUPPORTED = {  # values of GPT-2's config.json that are implemented here
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def is_shards(folder: Path) -> bool:
    """Whether the folder contains OpenAI's npy shards."""
    return os.path.isfile(folder / SHAPES_FILE)


def is_transformers(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is in transformers' format."""
    model_type = settings.get("model_type")
    return isinstance(model_type, str) and model_type in CLASS_PREFIXES


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our ModelConfig for transformers' config.json, with the recipes of conf/model/base.yaml or gpt2.yaml.

    Raises UserError if a key is missing, or a value is not implemented here.
    """
    counts = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
    if missing := [key for key in counts if type(settings.get(key)) is not int]:
        raise UserError(f"its config.json has no {', '.join(missing)}")
    is_gpt2 = settings.get("model_type") == GPT2_TYPE
    if not is_gpt2 and settings.get("afn", "gelu") not in TANH_GELU:
        raise UserError(f"its config.json has afn={settings['afn']}: only the paper's GELU is implemented")
    for key, supported in SUPPORTED.items() if is_gpt2 else ():
        if settings.get(key, supported[0]) not in supported:
            raise UserError(
                f"its config.json has {key}={display(settings[key])}: only {display(supported[0])} is implemented"
            )
    recipe = (
        Pretraining(batch_size=512, context=min(1024, settings["n_positions"]), lr=6e-4, warmup_steps=715)
        if is_gpt2
        else Pretraining(batch_size=64, context=min(512, settings["n_positions"]), lr=2.5e-4, warmup_steps=2000)
    )
    return ModelConfig(
        name="gpt2" if is_gpt2 else "openai",
        norm="pre" if is_gpt2 else "post",
        n_layer=settings["n_layer"],
        d_model=settings["n_embd"],
        n_head=settings["n_head"],
        d_ff=(settings.get("n_inner") if is_gpt2 else None) or 4 * settings["n_embd"],
        n_positions=settings["n_positions"],
        embedding_dropout=settings.get("embd_pdrop", 0.1),
        attention_dropout=settings.get("attn_pdrop", 0.1),
        residual_dropout=settings.get("resid_pdrop", 0.1),
        layer_norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        init_std=settings.get("initializer_range", 0.02),
        pretraining=recipe,
        finetuning=Finetuning(lr=6.25e-5),
    )


def transformers_config(config: ModelConfig, rows: int) -> dict[str, Any]:
    """Transformers' config.json for a model of this shape and so many vocabulary rows.

    Raises UserError if transformers has no such model.
    """
    if config.architecture != "transformer":
        raise UserError(f"transformers has no class for architecture={config.architecture}")
    is_gpt2, default_width = config.norm == "pre", config.d_ff == 4 * config.d_model
    if not is_gpt2 and not default_width:
        raise UserError(
            f"transformers' GPT-1 needs d_ff = 4 x d_model; this model has d_ff={config.d_ff}, d_model={config.d_model}"
        )
    gpt2_only = {"n_inner": None if default_width else config.d_ff, "activation_function": "gelu_new"}
    return {
        "model_type": GPT2_TYPE if is_gpt2 else GPT1_TYPE,
        "vocab_size": rows,
        "n_positions": config.n_positions,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        **(gpt2_only if is_gpt2 else {"afn": "gelu"}),
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "layer_norm_epsilon": config.layer_norm_eps,
        "initializer_range": config.init_std,
    }


def tokenizer_config(name: str) -> TokenizerConfig:
    """The tokenizer of openai or gpt2, the same as in conf/tokenizer/."""
    return TokenizerConfig(
        name=name, source="hub", repo=REPOS[name], merges=None, level="bytes" if name == "gpt2" else "words"
    )


def checkpoint_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of our checkpoints, from transformers' config.json. Raises UserError if that is not valid."""
    published = model_config(settings)
    tokenizer = tokenizer_config("gpt2" if settings["model_type"] == GPT2_TYPE else "openai")
    ours = settings.get(EXPORT_KEY, {})
    special = ours.get("special_rows", 0) if isinstance(ours, dict) else None
    if type(special) is not int or not 0 <= special < settings["vocab_size"]:
        raise UserError(f"its config.json has {EXPORT_KEY}={display(ours)}; gpt1 export does not write this value")
    model = build(ModelConfig, ours.get("model") or dataclasses.asdict(published))
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": dataclasses.asdict(build(TokenizerConfig, ours.get("tokenizer") or dataclasses.asdict(tokenizer))),
        "vocabulary": settings["vocab_size"] - special,
        "special_rows": special,
        **{key: ours[key] for key in ("tables",) if key in ours},
    }


def shards_config(folder: Path) -> dict[str, Any]:
    """Transformers' config.json for OpenAI's arrays, from their shapes: positions, tokens, then 12 arrays per layer.

    Raises UserError if the shapes are not those of a GPT-1.
    """
    try:
        shapes = json.loads((folder / SHAPES_FILE).read_bytes())
        (positions, width), (rows, _), (_, _, three) = shapes[0], shapes[1], shapes[2]
        counts = [count for shape in shapes for count in shape]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{folder / SHAPES_FILE}: not a list of the shapes of GPT-1's arrays ({error})") from error
    if not all(type(count) is int and count > 0 for count in counts):
        raise UserError(f"{folder / SHAPES_FILE}: a shape contains something other than positive integers")
    if (len(shapes) - 2) % 12 or three != 3 * width:
        raise UserError(
            f"{folder / SHAPES_FILE}: {len(shapes)} arrays, the third of width {three}; expected: positions, tokens,"
            f" then 12 arrays for each layer, the first of width 3 x {width}"
        )
    head = 64  # channels: the released code has 12 heads for width 768
    if width % head:
        raise UserError(f"{folder / SHAPES_FILE}: width {width} must be a multiple of {head}, the channels of a head")
    return {
        "model_type": GPT1_TYPE,
        "vocab_size": rows,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": (len(shapes) - 2) // 12,
        "n_head": width // head,
    }
