"""GPT-1 and GPT-2 as others store them: the folders that transformers reads and writes, and OpenAI's npy shards.

Here is what can be said of such a folder without its weights; convert.py turns the weights themselves.
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

OPENAI = "openai-community/openai-gpt"
REPOS = {"openai": OPENAI, "gpt2": "openai-community/gpt2"}  # what init= calls them; as options of tokenizer=, too
MODEL_TYPE = "openai-gpt"  # transformers' name for GPT-1
MODEL_TYPE_2 = "gpt2"
CLASSES = {MODEL_TYPE: "OpenAIGPT", MODEL_TYPE_2: "GPT2"}  # with what the names of its classes begin
SHAPES = "params_shapes.json"  # beside OpenAI's params_0.npy ... params_9.npy
OURS = "gpt1"  # key of an exported config.json under which we keep what transformers has no place for
TANH_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")  # of GPT-1 transformers' "gelu" is the tanh form, too
BUILT = {  # of what GPT-2's config.json may ask for, what is built here
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def is_shards(folder: Path) -> bool:
    """Whether the folder holds OpenAI's npy shards."""
    return os.path.isfile(folder / SHAPES)


def is_transformers(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of transformers'."""
    kind = settings.get("model_type")
    return isinstance(kind, str) and kind in CLASSES


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The config.json of transformers as ours, with the recipes of conf/model/base.yaml or gpt2.yaml."""
    counts = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
    if missing := [key for key in counts if type(settings.get(key)) is not int]:
        raise UserError(f"its config.json has no {', '.join(missing)}")
    second = settings.get("model_type") == MODEL_TYPE_2
    if not second and settings.get("afn", "gelu") not in TANH_GELU:
        raise UserError(f"its config.json has afn={settings['afn']}: only the paper's GELU is built here")
    for key, built in BUILT.items() if second else ():
        if settings.get(key, built[0]) not in built:
            raise UserError(
                f"its config.json has {key}={display(settings[key])}: only {display(built[0])} is built here"
            )
    recipe = (
        Pretraining(batch_size=512, context=min(1024, settings["n_positions"]), lr=6e-4, warmup_steps=715)
        if second
        else Pretraining(batch_size=64, context=min(512, settings["n_positions"]), lr=2.5e-4, warmup_steps=2000)
    )
    return ModelConfig(
        name="gpt2" if second else "openai",
        norm="pre" if second else "post",
        n_layer=settings["n_layer"],
        d_model=settings["n_embd"],
        n_head=settings["n_head"],
        d_ff=(settings.get("n_inner") if second else None) or 4 * settings["n_embd"],
        n_positions=settings["n_positions"],
        embedding_dropout=settings.get("embd_pdrop", 0.1),
        attention_dropout=settings.get("attn_pdrop", 0.1),
        residual_dropout=settings.get("resid_pdrop", 0.1),
        layer_norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        init_std=settings.get("initializer_range", 0.02),
        pretraining=recipe,
        finetuning=Finetuning(lr=6.25e-5),
    )


def settings_of(config: ModelConfig, rows: int) -> dict[str, Any]:
    """The config.json that transformers wants for a model of this shape. UserError where it cannot hold it."""
    if config.architecture != "transformer":
        raise UserError(f"transformers has no class for architecture={config.architecture}")
    second, four = config.norm == "pre", config.d_ff == 4 * config.d_model
    if not second and not four:
        raise UserError(f"transformers' GPT-1 has d_ff = 4 x d_model, this model {config.d_ff} and {config.d_model}")
    wide = {"n_inner": None if four else config.d_ff, "activation_function": "gelu_new"}
    return {
        "model_type": MODEL_TYPE_2 if second else MODEL_TYPE,
        "vocab_size": rows,
        "n_positions": config.n_positions,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        **(wide if second else {"afn": "gelu"}),
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "layer_norm_epsilon": config.layer_norm_eps,
        "initializer_range": config.init_std,
    }


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What one of our checkpoints would say of itself, from transformers' config.json; UserError where it is wrong."""
    published = model_config(settings)
    tokenizer = tokenizer_config("gpt2" if settings["model_type"] == MODEL_TYPE_2 else "openai")
    ours = settings.get(OURS, {})
    special = ours.get("special_rows", 0) if isinstance(ours, dict) else None
    if type(special) is not int or not 0 <= special < settings["vocab_size"]:
        raise UserError(f"its config.json has {OURS}={display(ours)}, which gpt1 export does not write")
    model = build(ModelConfig, ours.get("model") or dataclasses.asdict(published))
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": dataclasses.asdict(build(TokenizerConfig, ours.get("tokenizer") or dataclasses.asdict(tokenizer))),
        "vocabulary": settings["vocab_size"] - special,
        "special_rows": special,
        **{key: ours[key] for key in ("tables",) if key in ours},
    }


def tokenizer_config(name: str) -> TokenizerConfig:
    """The tokenizer of openai or gpt2, as conf/tokenizer/ has it."""
    return TokenizerConfig(
        name=name, source="hub", repo=REPOS[name], merges=None, level="bytes" if name == "gpt2" else "words"
    )


def settings_of_shards(folder: Path) -> dict[str, Any]:
    """The config.json that the shapes of OpenAI's arrays amount to: positions, tokens, then 12 arrays a block."""
    try:
        shapes = json.loads((folder / SHAPES).read_bytes())
        (positions, width), (rows, _), (_, _, three) = shapes[0], shapes[1], shapes[2]
        counts = [count for shape in shapes for count in shape]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{folder / SHAPES}: no list of the shapes of GPT-1's arrays ({error})") from error
    if not all(type(count) is int and count > 0 for count in counts):
        raise UserError(f"{folder / SHAPES}: a shape holds something else than counts")
    if (len(shapes) - 2) % 12 or three != 3 * width:
        raise UserError(
            f"{folder / SHAPES}: {len(shapes)} arrays, the third {three} wide; wanted are positions and tokens,"
            f" then 12 for each block, the first of them 3 x {width} wide"
        )
    head = 64  # channels: the released code's 12 heads of 768
    if width % head:
        raise UserError(f"{folder / SHAPES}: width {width} is no multiple of {head}, the channels of a head")
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": rows,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": (len(shapes) - 2) // 12,
        "n_head": width // head,
    }
