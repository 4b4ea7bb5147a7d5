"""Published weights in: names, transposes, file formats, and what is said of a file that does not fit."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import SHAPE, model_config, stir
from torch import Tensor
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from gpt1cli.checkpoint import fill
from gpt1cli.config import InputError, ModelConfig, build
from gpt1cli.convert import from_published, published_config, read_published
from gpt1cli.models.transformer import Transformer

V = 37
CONFIG = OpenAIGPTConfig(
    vocab_size=V,
    n_positions=SHAPE["n_positions"],
    n_embd=SHAPE["d_model"],
    n_layer=SHAPE["n_layer"],
    n_head=SHAPE["n_head"],
    layer_norm_epsilon=1e-4,
    attn_pdrop=0.3,
    embd_pdrop=0.4,
    resid_pdrop=0.5,
)


@pytest.fixture(scope="module")
def peer() -> OpenAIGPTLMHeadModel:
    torch.manual_seed(0)
    peer = OpenAIGPTLMHeadModel(CONFIG)
    stir(peer)
    return peer.eval()


@pytest.fixture
def published(peer) -> dict[str, Tensor]:
    """As the published file is: no prefix, no output table, a causal mask beside each block."""
    tensors = {name: t.detach().clone() for name, t in peer.transformer.state_dict().items()}
    return tensors | {f"h.{i}.attn.bias": torch.ones(1, 1, 20, 20) for i in range(SHAPE["n_layer"])}


def body() -> Transformer:
    torch.manual_seed(1)
    return Transformer(model_config(**SHAPE), V)


def test_names_and_transposes_by_hand():
    found = from_published(
        {
            "transformer.h.11.attn.c_attn.weight": torch.arange(6.0).view(2, 3),
            "h.0.mlp.c_fc.bias": torch.ones(4, dtype=torch.float16),
            "h.0.ln_2.weight": torch.ones(2),
            "tokens_embed.weight": torch.arange(4.0).view(2, 2),
            "transformer.positions_embed.weight": torch.zeros(3, 2),
            "lm_head.weight": torch.zeros(2, 2),
            "transformer.h.11.attn.bias": torch.zeros(1),
            "position_ids": torch.arange(3),
        }
    )
    assert set(found) == {
        "blocks.11.query_key_value.weight",
        "blocks.0.expand.bias",
        "blocks.0.feed_forward_norm.weight",
        "tokens.weight",
        "positions.weight",
    }
    assert found["blocks.11.query_key_value.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["tokens.weight"].tolist() == [[0, 1], [2, 3]]
    assert {t.dtype for t in found.values()} == {torch.float32} and all(t.is_contiguous() for t in found.values())


def test_the_same_weights_from_either_file_and_with_either_names(peer, published, tmp_path):
    torch.save(published, tmp_path / "pytorch_model.bin")
    save_file(published, tmp_path / "bare.safetensors")
    peer.save_pretrained(tmp_path / "prefixed")
    wanted = from_published(published)
    assert wanted.keys() == dict(body().named_parameters()).keys()
    for file in ("pytorch_model.bin", "bare.safetensors", "prefixed/model.safetensors"):
        found = read_published(tmp_path / file)
        assert found.keys() == wanted.keys(), file
        assert all(torch.equal(found[name], t) for name, t in wanted.items()), file


class Payload:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_file_is_executed(published, tmp_path):
    torch.save({**published, "h.0.ln_1.bias": Payload(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        read_published(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", ["empty", "cut", "text"])
def test_a_damaged_file_is_named(published, tmp_path, file, content):
    path = tmp_path / file
    torch.save(published, path) if file.endswith(".bin") else save_file(published, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"version https://git-lfs\n"}[content])
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        read_published(path)


# --- filling a model --------------------------------------------------------------------------------------------------


def test_filling_puts_every_tensor_in_its_place(published):
    model = body()
    fill(model, from_published(published), "here")
    assert all(torch.equal(p, from_published(published)[name]) for name, p in model.named_parameters())


def test_a_mismatch_lists_every_name_with_its_shapes_and_changes_nothing(published):
    model, before = body(), body().state_dict()
    published["tokens_embed.weight"] = torch.zeros(V + 3, SHAPE["d_model"])
    del published["h.1.mlp.c_proj.bias"]
    published["h.1.mlp.surprise.weight"] = torch.zeros(5)
    published["ln_f.weight"] = torch.zeros(2)
    with pytest.raises(InputError) as error:
        fill(model, from_published(published), "model.safetensors")
    assert str(error.value).splitlines() == [
        "model.safetensors: the weights do not fit the model:",
        "  blocks.1.contract.bias: wanted (24,), missing",
        "  h.1.mlp.surprise.weight: (5,), not wanted",
        "  ln_f.weight: (2,), not wanted",
        "  tokens.weight: wanted (37, 24), found (40, 24)",
    ]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_long_list_of_mismatches_is_cut(published):
    with pytest.raises(InputError, match=r"\.\.\. and 16 more"):
        fill(body(), {}, "nothing")


# --- the shape --------------------------------------------------------------------------------------------------------


def test_the_published_config_is_read_whole():
    ours = published_config(CONFIG.to_dict())
    rates = {"attention_dropout": 0.3, "embedding_dropout": 0.4, "residual_dropout": 0.5}
    wanted = {**SHAPE, **rates, "layer_norm_eps": 1e-4}
    assert {name: getattr(ours, name) for name in wanted} == wanted
    assert ours.init_std == 0.02
    assert build(ModelConfig, dataclasses.asdict(ours)) == ours  # a checkpoint of it can be read back


def test_the_config_of_gpt_1_is_that_of_base():
    ours, base = published_config(OpenAIGPTConfig().to_dict()), model_config("base")
    assert dataclasses.replace(ours, name="base") == base
