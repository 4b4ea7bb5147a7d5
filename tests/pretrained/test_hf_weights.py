"""Published weights: names, transposes, file formats, OpenAI's shards, and messages for mismatches."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel
from worlds import SHAPE, model_config, peer_config, stir

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained.hf_config import model_config as published_config
from gpt1cli.pretrained.hf_config import shards_config
from gpt1cli.pretrained.hf_weights import from_published, read_published, to_published
from gpt1cli.pretrained.load import load_weights
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer

V = 37
CONFIG = peer_config(V, layer_norm_epsilon=1e-4, attn_pdrop=0.3, embd_pdrop=0.4, resid_pdrop=0.5)


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture(scope="module")
def peer() -> OpenAIGPTLMHeadModel:
    torch.manual_seed(0)
    peer = OpenAIGPTLMHeadModel(CONFIG)
    stir(peer)
    return peer.eval()


@pytest.fixture
def published(peer) -> dict[str, Tensor]:
    """As in the published file: no prefix, no output embeddings, a causal mask for each layer."""
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
            "lm_head.weight": torch.arange(4.0).view(2, 2),
            "transformer.h.11.attn.bias": torch.zeros(1),
            "score.weight": torch.zeros(3, 2),
            "multiple_choice_head.summary.weight": torch.zeros(1, 2),
            "multiple_choice_head.summary.bias": torch.zeros(1),
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


def test_untied_output_embeddings_are_refused(tmp_path):
    tables = {"transformer.tokens_embed.weight": torch.ones(2, 2), "lm_head.weight": torch.zeros(2, 2)}
    reason = r"lm_head\.weight differs from its tokens_embed\.weight"
    with pytest.raises(UserError, match=reason):
        from_published(tables)
    save_file(tables, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=reason):
        read_published(tmp_path / "model.safetensors")


def test_weights_are_the_same_from_every_file_format(peer, published, tmp_path):
    torch.save(published, tmp_path / "pytorch_model.bin")
    save_file(published, tmp_path / "bare.safetensors")
    peer.save_pretrained(tmp_path / "prefixed")
    wanted = from_published(published)
    assert wanted.keys() == dict(body().named_parameters()).keys()
    for file in ("pytorch_model.bin", "bare.safetensors", "prefixed/model.safetensors"):
        found = read_published(tmp_path / file)
        assert found.keys() == wanted.keys(), file
        assert all(torch.equal(found[name], t) for name, t in wanted.items()), file


def test_exported_weights_equal_those_that_transformers_writes(peer, published):
    model = body()
    load_weights(model, from_published(published), "here")
    found, wanted = to_published(dict(model.named_parameters())), peer.state_dict()
    assert found.keys() == wanted.keys() - {"lm_head.weight"}
    assert all(torch.equal(t, wanted[name]) and t.is_contiguous() for name, t in found.items())


class Payload:
    """An object whose pickle executes code when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore")  # torch's warnings about the files
@pytest.mark.parametrize("form", ["zip", "before torch 1.6", "bare pickle", "script"])
def test_no_code_in_a_file_is_executed(published, tmp_path, monkeypatch, form):
    path, payload = tmp_path / "pytorch_model.bin", Payload(tmp_path / "executed")
    if form == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    elif form == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        zipped = form == "zip"
        torch.save({**published, "h.0.ln_1.bias": payload}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # loads any pickle if weights_only is not given
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        read_published(path)
    assert not (tmp_path / "executed").exists()
    if form != "script":  # check that the payload works
        torch.load(path, weights_only=False) if form != "bare pickle" else pickle.loads(path.read_bytes())
        assert (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_file_with_flipped_bits_is_read_or_refused_with_its_name(tmp_path, zipped):
    path, draw = tmp_path / "pytorch_model.bin", random.Random(0)
    torch.save({"h.0.ln_1.bias": torch.zeros(4)}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            read_published(path)
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > 40


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", ["empty", "truncated", "text"])
def test_damaged_file_is_named(published, tmp_path, file, content):
    path = tmp_path / file
    torch.save(published, path) if file.endswith(".bin") else save_file(published, path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"version https://git-lfs\n"}[content]
    )
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        read_published(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"h.0.ln_1.bias": 3}, {"state_dict": {}}, {3: torch.zeros(2)}])
def test_file_with_other_objects_than_tensors_is_named(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        read_published(tmp_path / "pytorch_model.bin")


# --- loading weights into a model -------------------------------------------------------------------------------------


def test_load_weights_copies_every_tensor(published):
    model = body()
    load_weights(model, from_published(published), "here")
    assert all(torch.equal(p, from_published(published)[name]) for name, p in model.named_parameters())


def test_mismatch_lists_names_and_shapes_and_changes_nothing(published):
    model, before = body(), body().state_dict()
    published["tokens_embed.weight"] = torch.zeros(V + 3, SHAPE["d_model"])
    del published["h.1.mlp.c_proj.bias"]
    published["h.1.mlp.surprise.weight"] = torch.zeros(5)
    published["ln_f.weight"] = torch.zeros(2)
    with pytest.raises(UserError) as error:
        load_weights(model, from_published(published), "model.safetensors")
    assert str(error.value).splitlines() == [
        "model.safetensors: the weights do not fit the model:",
        "  blocks.1.contract.bias: expected (24,), missing",
        "  h.1.mlp.surprise.weight: (5,), not expected",
        "  final_norm.weight: (2,), not expected",
        "  tokens.weight: expected (37, 24), found (40, 24)",
    ]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_long_list_of_mismatches_is_shortened(published):
    with pytest.raises(UserError, match=r"\.\.\. and 16 more"):
        load_weights(body(), {}, "nothing")


# --- the shape --------------------------------------------------------------------------------------------------------


def test_published_config_is_read_completely():
    ours = published_config(CONFIG.to_dict())
    rates = {"attention_dropout": 0.3, "embedding_dropout": 0.4, "residual_dropout": 0.5}
    wanted = {**SHAPE, **rates, "layer_norm_eps": 1e-4}
    assert {name: getattr(ours, name) for name in wanted} == wanted
    assert ours.init_std == 0.02
    assert build(ModelConfig, dataclasses.asdict(ours)) == ours  # a checkpoint of it can be loaded again


def test_gpt1_config_equals_base():
    ours, base = published_config(OpenAIGPTConfig().to_dict()), model_config("base")
    recipe = dataclasses.replace(ours.pretraining, lstm_lr=base.pretraining.lstm_lr)
    # transformers' config has no keys for the LSTM
    assert dataclasses.replace(ours, name="base", lstm_units=base.lstm_units, pretraining=recipe) == base


# --- a folder of transformers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return bpe.train({"the": 9, "cat": 5, "sat": 4, "on": 3, "mat": 2}, 6)


def make_peer(rows: int, **changes: int) -> OpenAIGPTLMHeadModel:
    """Transformers' model with random weights and so many vocabulary rows."""
    torch.manual_seed(2)
    peer = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**{**CONFIG.to_diff_dict(), "vocab_size": rows, **changes}))
    stir(peer)
    return peer.eval()


@pytest.fixture
def folder(vocabulary, tmp_path) -> Path:
    """The files of save_pretrained, for a model and its tokenizer."""
    make_peer(len(vocabulary)).save_pretrained(tmp_path / "theirs")
    vocabulary.save(tmp_path / "theirs")
    return tmp_path / "theirs"


@torch.no_grad()
def assert_same_logits(ours: Transformer, theirs: OpenAIGPTLMHeadModel) -> None:
    ids = torch.randint(theirs.config.vocab_size, (3, SHAPE["n_positions"]), generator=torch.Generator().manual_seed(3))
    wanted = theirs(ids).logits
    assert wanted.std() > 0.1  # otherwise any output would be close enough
    torch.testing.assert_close(ours.logits(ours(ids)), wanted, rtol=0, atol=1e-4)


def test_folder_of_transformers_gives_the_same_logits(vocabulary, folder):
    ours, found = gpt1cli.load(folder)
    assert_same_logits(ours, OpenAIGPTLMHeadModel.from_pretrained(folder).eval())
    assert ours.config.attention_dropout == 0.3
    assert (found.vocabulary, found.merges) == (vocabulary.vocabulary, vocabulary.merges)


def test_older_weights_file_in_such_a_folder_is_read(vocabulary, folder):
    (folder / "model.safetensors").unlink()
    peer = make_peer(len(vocabulary))
    torch.save(peer.transformer.state_dict(), folder / "pytorch_model.bin")
    assert_same_logits(gpt1cli.load(folder)[0], peer)


def test_folder_without_weights_names_the_possible_files(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors or pytorch_model\.bin"):
        gpt1cli.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_layer": None}, "no n_layer"),
        ({"vocab_size": None, "n_embd": "24"}, "no n_embd, vocab_size"),
        ({"n_head": 5}, "n_head=5 does not divide d_model=24"),
        ({"embd_pdrop": None}, "embedding_dropout"),
        ({"afn": "relu"}, "afn=relu"),
        ({"gpt1": []}, "gpt1="),
        ({"gpt1": {"special_rows": 10**6}}, "special_rows"),
        ({"gpt1": {"model": {"n_layer": 2}}}, "d_model"),
    ],
)
def test_invalid_config_is_refused_with_its_problem(folder, change, message):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(UserError) as error:
        gpt1cli.load(folder)
    assert str(folder) in str(error.value) and message in str(error.value)


def test_vocabulary_larger_than_the_embeddings_is_refused(folder):
    bpe.train({"the": 9, "cats": 5, "sat": 4, "upon": 3, "mat": 2}, 9).save(folder)
    with pytest.raises(UserError, match=r"vocabulary size of \d+, but its model has \d+ rows"):
        gpt1cli.load(folder)


# --- OpenAI's shards --------------------------------------------------------------------------------------------------

WIDTH, LAYERS = 128, 2  # two heads of 64 channels
BLOCK = {  # train.py and model.py of the released code: names and shapes in their order; convolutions of width 1
    "attn.c_attn.weight": (1, WIDTH, 3 * WIDTH),
    "attn.c_attn.bias": (3 * WIDTH,),
    "attn.c_proj.weight": (1, WIDTH, WIDTH),
    "attn.c_proj.bias": (WIDTH,),
    "ln_1.weight": (WIDTH,),
    "ln_1.bias": (WIDTH,),
    "mlp.c_fc.weight": (1, WIDTH, 4 * WIDTH),
    "mlp.c_fc.bias": (4 * WIDTH,),
    "mlp.c_proj.weight": (1, 4 * WIDTH, WIDTH),
    "mlp.c_proj.bias": (WIDTH,),
    "ln_2.weight": (WIDTH,),
    "ln_2.bias": (WIDTH,),
}


@pytest.fixture(scope="module")
def arrays(vocabulary) -> dict[str, np.ndarray]:
    """Random arrays with transformers' names in the layout of the released code."""
    shapes = {"positions_embed.weight": (SHAPE["n_positions"], WIDTH), "tokens_embed.weight": (len(vocabulary), WIDTH)}
    shapes |= {f"h.{i}.{name}": shape for i in range(LAYERS) for name, shape in BLOCK.items()}
    random = np.random.default_rng(0)
    made = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: array + (".ln_" in name and "weight" in name) for name, array in made.items()}  # gains around 1


@pytest.fixture
def shards(vocabulary, arrays, tmp_path) -> Path:
    """The folder `model` of openai/finetune-transformer-lm."""
    folder = tmp_path / "model"
    vocabulary.save(folder)
    (folder / "vocab.json").rename(folder / "encoder_bpe_40000.json")
    (folder / "merges.txt").rename(folder / "vocab_40000.bpe")
    (folder / "params_shapes.json").write_text(json.dumps([array.shape for array in arrays.values()]))
    for i, piece in enumerate(np.array_split(np.concatenate([array.ravel() for array in arrays.values()]), 10)):
        np.save(folder / f"params_{i}.npy", piece)
    return folder


def test_shards_give_the_same_logits_as_transformers(vocabulary, arrays, shards):
    peer = make_peer(len(vocabulary), n_embd=WIDTH, n_head=WIDTH // 64, n_layer=LAYERS, layer_norm_epsilon=1e-5)
    wanted = peer.transformer.state_dict()
    assert wanted.keys() == arrays.keys()
    peer.transformer.load_state_dict(
        {name: torch.from_numpy(array).view_as(wanted[name]) for name, array in arrays.items()}
    )
    ours, found = gpt1cli.load(shards)
    assert_same_logits(ours, peer)
    assert (found.vocabulary, found.merges) == (vocabulary.vocabulary, vocabulary.merges)
    text = "the cat sat on the mat"
    assert found.encode(text) == vocabulary.encode(text) and 0 not in found.encode(text)


def test_released_shapes_give_the_config_of_gpt1(tmp_path):
    """146 arrays (facts of the released params_shapes.json): 512 positions, 40,478 tokens, 12 blocks of 768."""
    block = [(*shape[:-2], *(6 * n for n in shape[-2:])) for shape in BLOCK.values()]  # 6 x 128 = 768
    shapes = [(512, 768), (40478, 768), *itertools.chain(*[block] * 12)]
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    theirs = OpenAIGPTConfig().to_dict()
    found = shards_config(tmp_path)
    assert len(shapes) == 146 and found == {name: theirs[name] for name in found}
    assert {"vocab_size", "n_positions", "n_embd", "n_layer", "n_head"} <= found.keys()


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:-4]


def with_complex_numbers(path: Path) -> bytes:
    return path.read_bytes().replace(b"'<f4'", b"'<c8'")


def without_end_of_header(path: Path) -> bytes:
    return path.read_bytes().replace(b"}", b"(", 1)


def with_impossible_size(path: Path) -> bytes:
    count = str(np.load(path).size).encode()
    return path.read_bytes().replace(b"(" + count + b",), } " + b" " * 12, b"(" + count + b"0" * 12 + b",), } ")


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path, "arr_0.npy")
    return path.with_suffix(".zip").read_bytes()


@pytest.mark.parametrize(
    "damaged",
    [
        truncated,
        with_complex_numbers,
        without_end_of_header,
        with_impossible_size,
        zipped,
        lambda _: b"",
        lambda _: b"version ",
    ],
    ids=["truncated", "complex", "header", "size", "zipped", "empty", "text"],
)
def test_damaged_shard_is_named(shards, damaged):
    path = shards / "params_3.npy"
    before, after = path.read_bytes(), damaged(path)
    assert after != before
    path.write_bytes(after)
    with pytest.raises(UserError, match=r"params_3\.npy"):
        gpt1cli.load(shards)


@pytest.mark.parametrize("missing", [["params_0.npy"], ["params_9.npy"], [f"params_{i}.npy" for i in range(10)]])
def test_missing_shard_is_reported_with_both_counts(shards, arrays, missing):
    removed = 0
    for name in missing:
        removed += np.load(shards / name).size
        (shards / name).unlink()
    total = sum(array.size for array in arrays.values())
    with pytest.raises(UserError) as error:
        gpt1cli.load(shards)
    message = str(error.value)
    assert f"{10 - len(missing)} files" in message and f"{total - removed:,} numbers" in message
    assert f"{total:,}" in message and "params_0.npy to params_9.npy" in message


@pytest.mark.parametrize("form", ["array", "bare"])
def test_no_pickle_in_a_shard_is_loaded(shards, form):
    payload = Payload(shards / "executed")
    if form == "array":
        np.save(shards / "params_3.npy", np.array([payload, payload], dtype=object), allow_pickle=True)
    else:
        (shards / "params_3.npy").write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match=r"params_3\.npy"):
        gpt1cli.load(shards)
    assert not (shards / "executed").exists()


@pytest.mark.parametrize(
    "shapes",
    [
        "",
        "[" * 100_000,
        "{}",
        "[]",
        "[1, 2, 3]",
        lambda shapes: shapes[:-1],
        lambda shapes: shapes[2:],
        lambda shapes: [[n // 2 for n in shape] for shape in shapes],
        lambda shapes: [*shapes[:3], "1234", *shapes[4:]],
        lambda shapes: [*shapes[:3], [-384], *shapes[4:]],
        lambda shapes: [*shapes[:3], [384.5], *shapes[4:]],
        lambda shapes: [*shapes[:3], 384, *shapes[4:]],
        lambda shapes: [[20, 96], [shapes[1][0], 96], [1, 96, 288], *shapes[3:]],
    ],
)
def test_list_of_shapes_other_than_gpt1s_is_refused(shards, shapes):
    path = shards / "params_shapes.json"
    path.write_text(shapes if isinstance(shapes, str) else json.dumps(shapes(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"params_shapes\.json: "):
        gpt1cli.load(shards)


def test_arrays_with_wrong_shapes_are_listed(shards):
    path = shards / "params_shapes.json"
    shapes = json.loads(path.read_text())
    shapes[8], shapes[10] = shapes[10], shapes[8]  # the two of the first feed-forward layer
    path.write_text(json.dumps(shapes))
    with pytest.raises(UserError) as error:
        gpt1cli.load(shards)
    assert str(error.value).splitlines() == [
        f"{shards}: the weights do not fit the model:",
        "  blocks.0.expand.weight: expected (512, 128), found (128, 512)",
        "  blocks.0.contract.weight: expected (128, 512), found (512, 128)",
    ]


# --- as a starting point ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_fine_tuning_starts_from_folder_and_shards(kind, request, vocabulary, tmp_path):
    init = request.getfixturevalue(kind)
    words = [
        "finetune", "task=demo_sentiment", f"init={init}", "limit.train=4", "limit.valid=4", "limit.test=4",
        "batch_size=4", "steps=1", "lr=1e-30", "optimizer.weight_decay=0", "runtime.threads=1", "runtime.progress=none",
        f"cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0
    start, (tuned, _) = gpt1cli.load(init)[0].state_dict(), gpt1cli.load(tmp_path / "run")
    rows = tuned.tokens.weight
    assert len(rows) == len(vocabulary) + 3 and torch.equal(rows[:-3], start.pop("tokens.weight"))
    assert all(torch.equal(tuned.state_dict()[name], t) for name, t in start.items())
