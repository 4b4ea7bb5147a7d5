"""Exported runs in transformers: equal outputs for equal ids, the model card, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OpenAIGPTDoubleHeadsModel, OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.evaluation import predictor
from gpt1cli.models.heads import Classifier
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.hf_weights import from_published
from gpt1cli.runs import files, record

POSITIONS = 32
SMALL = (
    "model=tiny", "model.n_layer=2", "model.d_model=16", "model.n_head=2", "model.d_ff=64",
    f"model.n_positions={POSITIONS}", f"model.pretraining.context={POSITIONS}", "batch_size=4",
)  # fmt: skip
STORY = "the cat sat on the mat . the dog ran to the cat . a bird sang , and the dog sat down .\n"
QUIET = ("runtime.threads=1", "runtime.progress=none")
CONFIG, WEIGHTS = "checkpoints/best/config.json", "checkpoints/best/model.safetensors"
CHECKSUMS = "checkpoints/best/checksums.json"


pytestmark = pytest.mark.usefixtures("exact_arithmetic", "no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a pretraining run, `language`, and two that were fine-tuned from it, `pair` and `choice`."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    words = [*SMALL, "corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    run(root, "pretrain", "language", *words, "steps=6", "eval_every=3", "lr=0.01")
    for name, task in (("pair", "demo_entailment"), ("choice", "demo_choice")):
        limits = [f"limit.{split}=8" for split in ("train", "valid", "test")]
        start = f"init={root / 'language'}"
        run(root, "finetune", name, f"task={task}", start, *limits, "batch_size=4", "steps=4", "lr=0.01")
    return root


def run(root: Path, command: str, name: str, *words: str) -> None:
    assert main([command, *words, *QUIET, f"cache={root / 'cache'}", f"hydra.run.dir={root / name}"]) == 0


def export(run: Path, out: Path) -> int:
    return main(["export", f"run={run}", f"out={out}", f"hydra.run.dir={out.with_name(f'{out.name}-record')}"])


Change = Callable[[dict[str, Any]], None]


def keep(_: dict[str, Any]) -> None: ...


def randomise(weights: dict[str, Tensor]) -> None:
    """Replace the weights by random ones, large enough to affect the output."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        gain = name.endswith("norm.weight")
        weights[name] = gain + torch.randn(tensor.shape, generator=random) * 0.3


KINDS = pytest.mark.parametrize("change", [keep, randomise], ids=["trained", "stirred"])


def copy_run(run: Path, to: Path, *, config: Change = keep, weights: Change = keep) -> Path:
    """Copy a run and change config.json or the weights of its best checkpoint."""
    shutil.copytree(run, to, symlinks=True)
    settings, tensors = files.read_json(to / CONFIG), load_file(to / WEIGHTS)
    config(settings)
    weights(tensors)
    (to / CONFIG).write_text(json.dumps(settings))
    save_file(tensors, to / WEIGHTS)
    (to / CHECKSUMS).unlink()  # they hold for the original weights
    return to


def load_transformers(cls: type, folder: Path) -> Any:
    """Load a model of transformers; no weight is missing or unexpected."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-2  # otherwise the comparison could not fail
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


# --- language models --------------------------------------------------------------------------------------------------


@KINDS
@torch.no_grad()
def test_a_language_model_gives_the_same_logits_in_transformers(world, tmp_path, change):
    ours = copy_run(world / "language", tmp_path / "run", weights=change)
    assert export(ours, tmp_path / "out") == 0
    model, tokenizer = gpt1cli.load(ours)
    ids = torch.randint(len(tokenizer), (3, POSITIONS), generator=torch.Generator().manual_seed(1))
    assert_close(load_transformers(OpenAIGPTLMHeadModel, tmp_path / "out")(ids).logits, model.logits(model(ids)))


@KINDS
def test_an_exported_folder_loads_with_the_same_weights(world, tmp_path, change):
    ours = copy_run(world / "language", tmp_path / "run", weights=change)
    assert export(ours, tmp_path / "out") == 0
    (before, spoken), (after, read) = gpt1cli.load(ours), gpt1cli.load(tmp_path / "out")
    assert before.config == after.config
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(t, after.state_dict()[name]) for name, t in before.state_dict().items())
    assert (read.vocabulary, read.merges, read.identity) == (spoken.vocabulary, spoken.merges, spoken.identity)


def test_a_language_model_is_exported_without_special_rows(world, tmp_path):
    """It has special rows if it was pretrained from a fine-tuned run."""

    def add_three_rows(weights: dict[str, Tensor]) -> None:
        weights["tokens.weight"] = torch.cat([weights["tokens.weight"], torch.ones(3, 16)])

    ours = copy_run(
        world / "language", tmp_path / "run", config=lambda c: c.update(special_rows=3), weights=add_three_rows
    )
    assert export(ours, tmp_path / "out") == 0
    model, tokenizer = gpt1cli.load(tmp_path / "out")
    assert torch.equal(model.tokens.weight, gpt1cli.load(world / "language")[0].tokens.weight)
    assert load_transformers(OpenAIGPTLMHeadModel, tmp_path / "out").config.vocab_size == len(tokenizer)


def test_the_given_checkpoint_is_exported(world, tmp_path):
    other = copy_run(world / "language", tmp_path / "run")
    shutil.copytree(other / "checkpoints" / "6", other / "checkpoints" / "3")
    random_weights = load_file(other / "checkpoints/3/model.safetensors")
    randomise(random_weights)
    save_file(random_weights, other / "checkpoints/3/model.safetensors")
    assert export(other / "checkpoints" / "3", tmp_path / "out") == 0
    assert torch.equal(gpt1cli.load(tmp_path / "out")[0].positions.weight, random_weights["positions.weight"])
    lines = files.read_jsonl(other / "metrics.jsonl")
    valid = {line["step"]: line["loss"] for line in lines if line["split"] == "valid"}
    page = (tmp_path / "out" / "README.md").read_text()  # with the metrics of this checkpoint only
    assert f"- valid: loss {valid[3]:.4g}, " in page and page.count("- valid: ") == 1 and "best" not in page
    assert f"{valid[6]:.4g}" not in page


@pytest.mark.parametrize("name", ["language", "pair"])
def test_fine_tuning_starts_from_an_exported_folder(world, tmp_path, name):
    assert export(world / name, tmp_path / "out") == 0
    still = ("limit.train=4", "limit.valid=4", "limit.test=4", "steps=1", "lr=1e-30", "optimizer.weight_decay=0")
    run(tmp_path, "finetune", "tuned", "task=demo_sentiment", f"init={tmp_path / 'out'}", "batch_size=4", *still)
    (start, tokenizer), (tuned, _) = gpt1cli.load(tmp_path / "out"), gpt1cli.load(tmp_path / "tuned")
    rows = start.tokens.num_embeddings
    assert rows == len(tokenizer) + (3 if name == "pair" else 0) and tuned.tokens.num_embeddings == len(tokenizer) + 3
    assert torch.equal(tuned.tokens.weight[:rows], start.tokens.weight)
    assert all(torch.equal(p, start.get_parameter(n)) for n, p in tuned.named_parameters() if n != "tokens.weight")


# --- fine-tuned models ------------------------------------------------------------------------------------------------


def sample_rows(vocabulary: int, count: int) -> list[list[int]]:
    """Rows of fine-tuning with different lengths, some with <unk> (0) inside, one with it at the end."""
    random = torch.Generator().manual_seed(2)
    texts = [torch.randint(vocabulary, (2 + 3 * i,), generator=random).tolist() for i in range(count)]
    texts[1][-1] = texts[2][0] = 0
    return [[vocabulary, *text[:2], vocabulary + 1, *text[2:], vocabulary + 2] for text in texts]


def pad(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def single_row_output(model: Classifier, row: list[int]) -> Tensor:
    """Return the output of our head for a single row."""
    return model.eval().classify(model.body(torch.tensor([row])), torch.tensor([[len(row) - 1]]))[0]


def classifier(run: Path) -> tuple[Classifier, int]:
    model, tokenizer = predictor.load_fine_tuned(locate.resolve_checkpoint(str(run)))
    return model, len(tokenizer)


@KINDS
@torch.no_grad()
def test_a_classifier_gives_the_same_logits_in_transformers(world, tmp_path, change):
    ours = copy_run(world / "pair", tmp_path / "run", weights=change)
    assert export(ours, tmp_path / "out") == 0
    model, vocabulary = classifier(ours)
    rows = sample_rows(vocabulary, count=6)
    expected = torch.stack([single_row_output(model, row) for row in rows])
    ids, lengths = pad(rows), torch.tensor([len(row) for row in rows])
    theirs = load_transformers(OpenAIGPTForSequenceClassification, tmp_path / "out")
    assert_close(theirs(ids).logits, expected)
    assert_close(theirs(ids, attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long()).logits, expected)
    assert theirs.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert theirs.config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}


@torch.no_grad()
def test_the_bias_of_the_head_is_not_lost(world, tmp_path):
    """The bias alone separates the labels, by a large margin."""

    def set_only_the_bias(weights: dict[str, Tensor]) -> None:
        weights["head.bias"] = torch.tensor([3.0, -2.0, 0.5])

    ours = copy_run(world / "pair", tmp_path / "run", weights=set_only_the_bias)
    assert export(world / "pair", tmp_path / "without") == export(ours, tmp_path / "with") == 0
    ids = pad(sample_rows(classifier(ours)[1], count=4))
    without, actual = (
        load_transformers(OpenAIGPTForSequenceClassification, tmp_path / name)(ids).logits
        for name in ("without", "with")
    )
    before = load_file(world / "pair" / WEIGHTS)["head.bias"]
    assert_close(actual - without, (torch.tensor([3.0, -2.0, 0.5]) - before).expand(4, 3))


@pytest.mark.parametrize("loss, outputs, names", [("mse", 1, ["score"]), ("ordinal", 5, ["1", "2", "3", "4", "5"])])
@torch.no_grad()
def test_a_regression_head_gives_the_same_outputs_in_transformers(world, tmp_path, loss, outputs, names):
    def make_regression(config: dict[str, Any]) -> None:
        config["task"].update(loss=loss, labels=[], range=[1, 5], metrics=["pearson"])
        del config["task"]["zeroshot"], config["task"]["prompt"]  # their words belong to classes

    def set_head(weights: dict[str, Tensor]) -> None:
        weights.update({"head.weight": torch.empty(outputs, 16), "head.bias": torch.empty(outputs)})
        randomise(weights)

    ours = copy_run(world / "pair", tmp_path / "run", config=make_regression, weights=set_head)
    assert export(ours, tmp_path / "out") == 0
    model, vocabulary = classifier(ours)
    rows = sample_rows(vocabulary, count=4)
    theirs = load_transformers(OpenAIGPTForSequenceClassification, tmp_path / "out")
    assert_close(theirs(pad(rows)).logits, torch.stack([single_row_output(model, row) for row in rows]))
    assert list(theirs.config.id2label.values()) == names


@KINDS
@torch.no_grad()
def test_a_choice_gives_the_same_scores_in_transformers(world, tmp_path, change):
    """Two answers per question: one row each; mc_token_ids is the position of `_classify_`."""
    ours = copy_run(world / "choice", tmp_path / "run", weights=change)
    assert export(ours, tmp_path / "out") == 0
    model, vocabulary = classifier(ours)
    rows = sample_rows(vocabulary, count=6)
    ends = torch.tensor([row.index(vocabulary + 2) for row in rows])
    theirs = load_transformers(OpenAIGPTDoubleHeadsModel, tmp_path / "out")
    actual = theirs(pad(rows).view(3, 2, -1), mc_token_ids=ends.view(3, 2))
    assert_close(actual.mc_logits, torch.cat([single_row_output(model, row) for row in rows]).view(3, 2))
    hidden = model.body(pad(rows))
    assert_close(actual.logits.flatten(0, 1), model.body.logits(hidden))


@torch.no_grad()
def test_the_body_of_a_fine_tuned_model_loads_again(world, tmp_path):
    """All weights, also if the bias of the last norm absorbed that of the head."""
    for name, moved in (("choice", set()), ("pair", {"blocks.1.feed_forward_norm.bias"})):
        ours = copy_run(world / name, tmp_path / name, weights=randomise)
        assert export(ours, tmp_path / f"{name}-out") == 0
        (before, spoken), (after, read) = gpt1cli.load(ours), gpt1cli.load(tmp_path / f"{name}-out")
        assert all(torch.equal(tensor, after.state_dict()[n]) for n, tensor in before.state_dict().items())
        written = from_published(load_file(tmp_path / f"{name}-out" / "model.safetensors"))
        assert {n for n, tensor in before.state_dict().items() if not torch.equal(tensor, written[n])} == moved
        assert (read.vocabulary, read.merges) == (spoken.vocabulary, spoken.merges)


# --- model card and result --------------------------------------------------------------------------------------------


def test_the_model_card_has_command_results_settings_and_limits(world, tmp_path, capsys):
    capsys.readouterr()
    assert export(world / "pair", tmp_path / "out") == 0
    output = capsys.readouterr()
    assert "OpenAIGPTForSequenceClassification" in output.out and str(tmp_path / "out") in output.out
    page = (tmp_path / "out" / "README.md").read_text()
    vocabulary = len(gpt1cli.load(tmp_path / "out")[1])
    result = json.loads((world / "pair" / "result.json").read_text())
    for expected in (
        "library_name: transformers",
        "Input: `_start_`, the first text, `_delimiter_`, the second text, `_classify_`.",
        "`OpenAIGPTForSequenceClassification`",
        f"gpt1 finetune task=demo_entailment init={world / 'language'} limit.train=8",
        f"- valid: loss {result['valid']['loss']:.4g}, accuracy {result['valid']['accuracy']:.4g}",
        f"- test: loss {result['test']['loss']:.4g}, accuracy {result['test']['accuracy']:.4g}",
        "\n    lr: 0.01\n",
        f"`_start_` is {vocabulary}, `_delimiter_` is {vocabulary + 1}, `_classify_` is {vocabulary + 2}",
    ):
        assert expected in page, expected
    for line in (world / "pair" / "config.yaml").read_text().splitlines():
        assert line in page
    for text in (page, output.err):
        assert "AutoTokenizer" in text and "other ids" in text and "gpt1cli.load" in text


def test_a_command_in_the_model_card_can_be_pasted_into_a_shell(world, tmp_path):
    ours = copy_run(world / "language", tmp_path / "run")
    record.update_environment(ours, command_line=["pretrain", "corpus.path=my books/*.txt"])
    assert export(ours, tmp_path / "out") == 0
    assert "gpt1 pretrain 'corpus.path=my books/*.txt'\n" in (tmp_path / "out" / "README.md").read_text()


def test_the_model_card_has_the_metrics_of_an_unfinished_run_and_none_of_a_lone_checkpoint(world, tmp_path):
    ours = copy_run(world / "language", tmp_path / "run")
    (ours / "result.json").unlink()
    shutil.copytree(ours / "checkpoints" / "6", ours / "elsewhere" / "6")
    for number, origin in enumerate((ours, ours / "elsewhere" / "6")):
        assert export(origin, tmp_path / f"out{number}") == 0
        page = (tmp_path / f"out{number}" / "README.md").read_text()
        assert ("perplexity" in page) == (number == 0) and "AutoTokenizer" in page
        assert ("gpt1 pretrain" in page) == (number == 0)


def test_the_export_writes_its_result(world, tmp_path):
    assert export(world / "language", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out-record" / "result.json").read_text())
    assert (result["status"], result["command"], result["class"]) == ("finished", "export", "OpenAIGPTLMHeadModel")


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(run: Path, out: Path, capsys) -> str:
    """Return the message of a refused export, which writes nothing."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert export(run, out) == 2
    assert sorted(out.parent.iterdir()) == before
    return capsys.readouterr().err


def test_a_similarity_run_is_refused(world, tmp_path, capsys):
    ours = copy_run(world / "pair", tmp_path / "run", config=lambda c: c["task"].update(layout="similarity"))
    message = refusal(ours, tmp_path / "out", capsys)
    assert "both orders" in message and "transformers" in message


def test_a_width_that_transformers_cannot_hold_is_refused(world, tmp_path, capsys):
    ours = copy_run(world / "language", tmp_path / "run", config=lambda c: c["model"].update(d_ff=32))
    message = refusal(ours, tmp_path / "out", capsys)
    assert "d_ff = 4 x d_model" in message and "d_ff=32, d_model=16" in message


def test_a_folder_that_transformers_already_reads_is_refused(world, tmp_path, capsys):
    assert export(world / "pair", tmp_path / "out") == 0
    assert export(tmp_path / "out", tmp_path / "again") == 2
    assert (
        "transformers already reads this folder; copy it" in capsys.readouterr().err
        and not (tmp_path / "again").exists()
    )


def test_a_folder_that_cannot_be_created_is_reported(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert main(["export", f"run={world / 'pair'}", f"out={out}", f"hydra.run.dir={tmp_path / 'record'}"]) == 2
    assert "cannot be written: a file exists where a folder is needed" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_refused_and_unchanged(world, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert f"out={tmp_path / 'out'}" in refusal(world / "language", tmp_path / "out", capsys)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "file").write_text("mine")
    assert f"out={tmp_path / 'file'}" in refusal(world / "language", tmp_path / "file", capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(world, tmp_path):
    (tmp_path / "out").mkdir()
    assert export(world / "language", tmp_path / "out") == 0
    actual = {path.name for path in (tmp_path / "out").iterdir()}
    assert actual == {"README.md", "config.json", "merges.txt", "model.safetensors", "vocab.json"}


def test_a_run_without_a_checkpoint_is_refused(world, tmp_path, capsys):
    ours = copy_run(world / "language", tmp_path / "run")
    shutil.rmtree(ours / "checkpoints")
    assert "without a checkpoint" in refusal(ours, tmp_path / "out", capsys)


def test_run_and_out_are_both_required(capsys):
    assert main(["export"]) == 2
    message = capsys.readouterr().err
    assert "run is needed" in message and "out is needed" in message
