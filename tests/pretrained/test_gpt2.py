"""GPT-2: our model against transformers' GPT2, reading and writing its files, and every command on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Tokenizer,
)
from worlds import NO_DROPOUT, SHAPE, SMALL, model_config, stir

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.data import demo_world
from gpt1cli.evaluation import predictor
from gpt1cli.models.transformer import KVCache, Transformer
from gpt1cli.pretrained import hf_config, locate
from gpt1cli.pretrained.hf_weights import from_published, read_published, to_published
from gpt1cli.pretrained.load import copy_layers
from gpt1cli.text.bpe import ByteTokenizer, train_bytes

V = 61
PRE = {**SHAPE, **NO_DROPOUT, "norm": "pre"}

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def make_peer(rows: int = V, **changes: object) -> GPT2LMHeadModel:
    """Transformers' GPT-2 in SHAPE, with random parameters."""
    torch.manual_seed(3)
    shape = {"n_positions": 20, "n_embd": 24, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    peer = GPT2LMHeadModel(GPT2Config(**{"vocab_size": rows, **shape, **changes}))
    stir(peer)
    return peer.eval()


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return make_peer()


@pytest.fixture(scope="module")
def model(peer) -> Transformer:
    """Our model with the weights of the peer."""
    model = Transformer(model_config(**PRE), V).eval()
    model.load_state_dict(from_published(peer.state_dict()))
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


# --- the model --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_and_logits_equal_those_of_transformers(peer, model):
    row = tokens(3, 20)
    hidden, wanted = model(row), peer(row)
    assert wanted.logits.std() > 0.1  # otherwise any output would be close enough
    torch.testing.assert_close(hidden, peer.transformer(row).last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.logits(hidden), wanted.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_with_a_kv_cache_equal_those_of_transformers(peer, model):
    row, cache, theirs = tokens(2, 20), KVCache(capacity=20), None
    for start, end in ((0, 9), (9, 10), (10, 20)):
        wanted = peer(row[:, start:end], past_key_values=theirs, use_cache=True)
        theirs = wanted.past_key_values
        found = model.logits(model(row[:, start:end], cache=cache))
        torch.testing.assert_close(found, wanted.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_packed_rows_branches_and_padding_equal_plain_rows(peer, model):
    """A prefix of 4 with continuations of 3 and 2, then another document of 5 in the same row."""
    prefix, first, second, other = (tokens(n, seed=n) for n in (4, 3, 2, 5))
    row = torch.cat([prefix, first, second, other])[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2, 3, 4]])
    branch = torch.tensor([[0] * 4 + [1] * 3 + [2] * 2 + [0] * 5])
    document = torch.tensor([[0] * 9 + [1] * 5])
    found = model(row, positions, document, branch)[0]
    states = lambda ids: peer.transformer(ids[None]).last_hidden_state[0]  # noqa: E731
    torch.testing.assert_close(found[:7], states(torch.cat([prefix, first])), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[7:9], states(torch.cat([prefix, second]))[4:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[9:], states(other), rtol=0, atol=1e-5)
    padded = torch.stack([tokens(9), torch.cat([other, torch.zeros(4, dtype=torch.long)])])
    found = model(padded, lengths=[9, 5])
    torch.testing.assert_close(found[1, :5], states(other), rtol=0, atol=1e-5)
    assert not found[1, 5:].any()


def test_gradients_equal_those_of_transformers(peer, model):
    row = tokens(2, 20)
    peer.zero_grad()
    model.zero_grad()
    peer(row).logits.logsumexp(-1).sum().backward()
    model.logits(model(row)).logsumexp(-1).sum().backward()
    wanted = from_published({name: p.grad for name, p in peer.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-3)


def test_gpt2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Transformer(model_config("gpt2"), 50_257)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_residual_projections_are_initialised_smaller():
    """0.02 / sqrt(2 x 8 layers) = 0.005: attention and feed-forward of each layer are added to the residual sum."""
    torch.manual_seed(0)
    deviations: dict[str, list[float]] = {"scaled": [], "plain": []}
    for name, parameter in Transformer(model_config(n_layer=8, norm="pre"), 500).named_parameters():
        if parameter.dim() > 1:
            scaled = name.endswith(("attention_output.weight", "contract.weight"))
            deviations["scaled" if scaled else "plain"].append(parameter.std().item())
        else:
            assert torch.all(parameter == (1 if name.endswith("norm.weight") else 0)), name
    assert len(deviations["scaled"]) == 16 and len(deviations["plain"]) == 18
    assert deviations["scaled"] == pytest.approx([0.005] * 16, rel=0.05)
    assert deviations["plain"] == pytest.approx([0.02] * 18, rel=0.05)


def test_dropout_is_applied_before_each_residual_sum(model):
    """With residual dropout near 1 the layers add nothing: the output is the final norm of the embeddings."""
    dropped = Transformer(model_config(**{**PRE, "residual_dropout": 0.999999}), V).train()
    dropped.load_state_dict(model.state_dict())
    row = tokens(1, 6)
    embedded = dropped.tokens(row) + dropped.positions(torch.arange(6))
    torch.testing.assert_close(dropped(row), dropped.final_norm(embedded), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_copying_all_layers_copies_the_final_norm_too(model, layers):
    torch.manual_seed(5)
    target = Transformer(model.config, V)
    copy_layers(target, model, layers)
    same = {name for name, p in target.named_parameters() if torch.equal(p, dict(model.named_parameters())[name])}
    wanted = {"tokens.weight", "positions.weight"}
    blocks = tuple(f"blocks.{i}." for i in range(layers))
    wanted |= {name for name, _ in model.named_parameters() if blocks and name.startswith(blocks)}
    assert same == wanted | ({"final_norm.weight", "final_norm.bias"} if layers == 2 else set())


def test_older_checkpoint_without_norm_has_post_norm():
    older = dataclasses.asdict(model_config())
    del older["norm"]
    assert build(ModelConfig, older).norm == "post"


# --- its files --------------------------------------------------------------------------------------------------------


def test_weights_are_the_same_from_every_file_format(peer, tmp_path):
    """The hub's format (no prefix, a causal mask in each layer), and both formats of transformers."""
    bare = {name: t.detach().clone() for name, t in peer.transformer.state_dict().items()}
    masks = {f"h.{i}.attn.{name}": torch.ones(1, 1, 20, 20) for i in range(2) for name in ("bias", "masked_bias")}
    save_file(bare | masks, tmp_path / "bare.safetensors")
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")  # with lm_head.weight
    peer.save_pretrained(tmp_path / "prefixed")
    wanted = {name: p.shape for name, p in Transformer(model_config(**PRE), V).named_parameters()}
    for file in ("bare.safetensors", "pytorch_model.bin", "prefixed/model.safetensors"):
        found = read_published(tmp_path / file)
        assert {name: t.shape for name, t in found.items()} == wanted, file
        assert torch.equal(found["blocks.1.expand.weight"], peer.transformer.h[1].mlp.c_fc.weight.T), file
        assert torch.equal(found["final_norm.bias"], peer.transformer.ln_f.bias), file


def test_exported_weights_equal_those_that_transformers_writes(peer, model):
    found, wanted = to_published(dict(model.named_parameters())), peer.state_dict()
    assert found.keys() == wanted.keys() - {"lm_head.weight"}
    assert all(torch.equal(t, wanted[name]) and t.is_contiguous() for name, t in found.items())


def test_untied_output_embeddings_are_refused():
    with pytest.raises(UserError, match=r"lm_head\.weight differs from its wte\.weight"):
        from_published({"transformer.wte.weight": torch.ones(2, 2), "lm_head.weight": torch.zeros(2, 2)})


def test_gpt2_config_equals_the_one_in_conf():
    ours, conf = hf_config.model_config(GPT2Config().to_dict()), model_config("gpt2")
    assert dataclasses.replace(ours, lstm_units=conf.lstm_units) == conf


@pytest.mark.parametrize("d_ff", [96, 40])
def test_config_survives_export_and_import(d_ff):
    config = model_config(**{**PRE, "d_ff": d_ff, "layer_norm_eps": 1e-4, "attention_dropout": 0.3})
    settings = GPT2Config(**hf_config.transformers_config(config, V)).to_dict()  # through transformers' config class
    back = hf_config.model_config(settings)
    assert back.shape == config.shape and back.attention_dropout == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function=gelu: only gelu_new is implemented"),
        ({"activation_function": "relu"}, "activation_function=relu"),
        ({"scale_attn_weights": False}, "scale_attn_weights=false"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true: only false"),
        ({"add_cross_attention": True}, "add_cross_attention=true"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=false"),
        ({"n_inner": "wide"}, "d_ff"),
        ({"n_head": None}, "no n_head"),
    ],
)
def test_unsupported_settings_are_refused(change, message):
    with pytest.raises(UserError) as error:
        build(ModelConfig, hf_config.checkpoint_config({**make_peer().config.to_dict(), **change})["model"])
    assert message in str(error.value)


# --- a folder in the hub's format -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return train_bytes(demo_world.documents(count=40), 60)


@pytest.fixture(scope="module")
def hub(tokenizer, tmp_path_factory) -> Path:
    """A hub with openai-community/gpt2: a small model of random weights."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "openai-community" / "gpt2"
    make_peer(
        len(tokenizer),
        n_positions=128,
        bos_token_id=tokenizer.document_separator,
        eos_token_id=tokenizer.document_separator,
    ).save_pretrained(folder)
    tokenizer.save(folder)
    return root


def run_command(capsys, *words: object) -> str:
    assert main([*map(str, words), "runtime.threads=1", "runtime.progress=none"]) == 0
    return capsys.readouterr().out


@torch.no_grad()
def test_init_gpt2_loads_the_hubs_folder(hub, tokenizer):
    model, read = gpt1cli.load("gpt2", hub)
    assert (read.identity, model.config.norm, model.config.n_positions) == (tokenizer.identity, "pre", 128)
    theirs = GPT2LMHeadModel.from_pretrained(hub / "openai-community" / "gpt2").eval()
    ids = torch.tensor([read.encode("The Cat sat\n on the mat, 😀!")])
    assert read.decode(ids[0].tolist()) == "The Cat sat\n on the mat, 😀!"
    wanted = theirs(ids).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(model.logits(model(ids)), wanted, rtol=0, atol=1e-4)


def test_folder_saved_by_transformers_is_an_init(hub, tokenizer, tmp_path):
    """Transformers writes the tokenizer as one file."""
    folder = hub / "openai-community" / "gpt2"
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(tmp_path)
    GPT2Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    model, read = gpt1cli.load(tmp_path)
    again, _ = gpt1cli.load("gpt2", hub)
    assert read.identity == tokenizer.identity
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_unsupported_config_is_refused_with_its_folder(hub, tmp_path, capsys):
    folder = hub / "openai-community" / "gpt2"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "scale_attn_by_inverse_layer_idx": True}))
    assert main(["generate", f"init={tmp_path}", "prompt=a", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message and "scale_attn_by_inverse_layer_idx=true: only false is implemented" in message


def test_score_generate_zeroshot_and_fewshot_run_with_gpt2(hub, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("The cat sat.\n  Two  BLANKS 😀\n")
    common = ("init=gpt2", f"hub={hub}", f"cache={tmp_path / 'cache'}")
    run_command(capsys, "score", f"input={tmp_path / 'lines.txt'}", *common, f"hydra.run.dir={tmp_path / 'score'}")
    first, second = map(json.loads, (tmp_path / "score" / "scores.jsonl").read_text().splitlines())
    assert "".join(first["tokens"]) == "TheĠcatĠsat." and "".join(second["tokens"]).startswith("ĠĠTwoĠĠBLANKS")
    output = run_command(
        capsys,
        "generate",
        "prompt=The Cat\n",
        *common,
        "tokens=12",
        "temperature=0",
        f"hydra.run.dir={tmp_path / 'say'}",
    )
    line = json.loads((tmp_path / "say" / "generated.jsonl").read_text())
    assert output == line["text"] + "\n" and line["text"].startswith("The Cat\n")
    limits = ("limit.train=8", "limit.valid=6", "limit.test=6")
    for command in (["zeroshot"], ["fewshot", "shots=2", "seeds=[0,1]"]):
        words = (*command, "task=demo_sentiment", *common, *limits, f"hydra.run.dir={tmp_path / command[0]}")
        run_command(capsys, *words)
        assert json.loads((tmp_path / command[0] / "result.json").read_text())["status"] == "finished"


# --- every command on our own run -------------------------------------------------------------------------------------

PRE_WORDS = (
    *SMALL,
    "model.d_ff=64",
    "model.norm=pre",
    "model.n_positions=96",
    "tokenizer=bytes",
    "tokenizer.merges=80",
)


TASKS = {
    "pair": ["task=demo_entailment"],
    "choice": ["task=demo_choice"],
    "half": ["task=demo_sentiment", "transfer_layers=1"],
    "prompt": ["task=demo_sentiment", "method=prompt"],
}
TUNED = [name if name == "pair" else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a pretraining run, `language`."""
    root = tmp_path_factory.mktemp("world")
    stories = (json.dumps({"text": story}) for story in demo_world.documents(count=60))
    (root / "stories.jsonl").write_text("\n".join(stories))
    corpus = ("corpus=text", f"corpus.path={root / 'stories.jsonl'}")
    run(root, "pretrain", "language", *PRE_WORDS, *corpus, "steps=6", "eval_every=6", "lr=0.01")
    return root


def tuned_on(world: Path, name: str) -> Path:
    """A run fine-tuned from `language`."""
    if not (world / name).exists():
        limits = ("limit.train=8", "limit.valid=8", "limit.test=8")
        few = ("steps=4", "lr=0.01", "batch_size=4", "eval_every=4")
        run(world, "finetune", name, *TASKS[name], f"init={world / 'language'}", *limits, *few)
    return world / name


def run(root: Path, command: str, name: str, *words: str) -> None:
    quiet = ("runtime.threads=1", "runtime.progress=none", f"cache={root / 'cache'}")
    assert main([command, *words, *quiet, f"hydra.run.dir={root / name}"]) == 0


def test_pretraining_and_continued_pretraining(world):
    model, read = gpt1cli.load(world / "language")
    assert (read.level, len(read), model.config.norm) == ("bytes", 256 + 80 + 1, "pre")
    assert read.decode(read.encode("A 😀  Story\n")) == "A 😀  Story\n"
    about = locate.read_checkpoint_config(locate.resolve_checkpoint(str(world / "language")))
    assert about["tokenizer"]["level"] == "bytes" and about["vocabulary"] == 337
    corpus = ("corpus=text", f"corpus.path={world / 'stories.jsonl'}")
    longer = (*corpus, f"init={world / 'language'}", "steps=2", "batch_size=4", "context=32")
    run(world, "pretrain", "longer", *longer)
    assert gpt1cli.load(world / "longer")[0].config.norm == "pre"


@pytest.mark.parametrize("name", TUNED)
def test_evaluate_repeats_the_scores_of_fine_tuned_runs(world, name):
    result = json.loads((tuned_on(world, name) / "result.json").read_text())
    run(world, "evaluate", f"evaluate-{name}", f"run={world / name}", "limit.valid=8", "limit.test=8")
    again = json.loads((world / f"evaluate-{name}" / "result.json").read_text())
    assert again["valid"]["accuracy"] == result["valid"]["accuracy"]


def test_contradiction_to_init_is_named(world, tmp_path, capsys):
    words = ["finetune", "task=demo_sentiment", f"init={world / 'language'}", f"out={tmp_path}"]
    assert main([*words, "model.norm=post"]) == 2
    assert "norm=post, not pre" in capsys.readouterr().err
    assert main([*words, "tokenizer.level=words"]) == 2
    assert "level=words, not bytes" in capsys.readouterr().err


@torch.no_grad()
def test_exported_language_model_loads_in_transformers(world, tmp_path, capsys):
    run_command(
        capsys, "export", f"run={world / 'language'}", f"out={tmp_path / 'out'}", f"hydra.run.dir={tmp_path / 'record'}"
    )
    model, read = gpt1cli.load(world / "language")
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    text = "The dog's  hat\n was BIG, 😀."
    ids = torch.tensor([read.encode(text)])
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == ids[0].tolist()
    wanted = theirs.eval()(ids).logits
    assert wanted.std() > 1e-2
    torch.testing.assert_close(model.logits(model(ids)), wanted, rtol=0, atol=1e-4)
    back, read_back = gpt1cli.load(tmp_path / "out")
    assert back.config == model.config and read_back.identity == read.identity
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in model.state_dict().items())
    assert theirs.config.eos_token_id == read.document_separator
    page = (tmp_path / "out" / "README.md").read_text()
    assert "A GPT-2 trained by gpt1" in page and "`GPT2LMHeadModel`" in page and "ftfy" not in page


@torch.no_grad()
@pytest.mark.parametrize("name", TUNED[:2])
def test_exported_classifier_gives_the_same_scores(world, tmp_path, capsys, name):
    best = locate.resolve_checkpoint(str(tuned_on(world, name)))
    tensors = load_file(best / "model.safetensors")
    assert tensors["head.weight"].any()
    run_command(
        capsys, "export", f"run={world / name}", f"out={tmp_path / 'out'}", f"hydra.run.dir={tmp_path / 'record'}"
    )
    cls = GPT2DoubleHeadsModel if name == "choice" else GPT2ForSequenceClassification
    theirs, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tuned, read = predictor.load_fine_tuned(best)
    V = len(read)
    row = [V, *read.encode("the cat"), V + 1, *read.encode(" sat"), V + 2]
    hidden = tuned.eval().body(torch.tensor([row]))
    ours = tuned.classify(hidden, torch.tensor([[len(row) - 1]]))
    padded = torch.tensor([[*row, 0, 0]])
    if name == "choice":
        found = theirs.eval()(padded[None], mc_token_ids=torch.tensor([[len(row) - 1]])).mc_logits
    else:
        found = theirs.eval()(padded).logits
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)
    back, _ = gpt1cli.load(tmp_path / "out")  # the last norm's original bias is restored
    assert all(torch.equal(p, tensors[f"body.{key}"]) for key, p in back.named_parameters())
