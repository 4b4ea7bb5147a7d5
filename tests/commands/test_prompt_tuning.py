"""Fine-tuning on few examples, with a head and with a prompt: whole runs, small enough for a laptop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from worlds import SMALL

from gpt1cli.cli.main import main
from gpt1cli.evaluation.predictor import load_fine_tuned, restore_predictor
from gpt1cli.pretrained import locate
from gpt1cli.prompts.prompt import pack_prompt
from gpt1cli.runs import files
from gpt1cli.tasks import splits
from gpt1cli.tasks.example import Example
from gpt1cli.training.device import Machine

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a run on few examples, `run`, from random weights."""
    root = tmp_path_factory.mktemp("world")
    assert main(finetune(root, "run", *SIMILAR, "steps=6")) == 0
    return root


PROMPT = ("method=prompt", "shots=4")
SIMILAR = (*PROMPT, "demos=similar", "demo_sets=3", "schedule=constant", "eval_every=2")


def finetune(root: Path, run: str, *more: str) -> list[str]:
    shape = ("model.n_positions=160", "model.d_ff=64")
    return [
        "finetune", "task=demo_sentiment", *SMALL, *shape, "limit.test=20", f"cache={root / 'cache'}",
        f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


def weights(run: Path, link: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / link / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loaded(run: Path):
    """Return model and predictor of a run, with a micro-batch of three sequences."""
    origin = locate.resolve_checkpoint(str(run))
    model, vocabulary = load_fine_tuned(origin)
    machine = Machine(torch.device("cpu"), torch.float32, 1, 3, False)
    return model.eval(), restore_predictor(locate.read_checkpoint_config(origin), model, vocabulary, machine, None)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_shots_sets_examples_per_class_and_tests_on_the_official_split(world):
    result = json.loads((world / "run" / "result.json").read_text())
    assert result["examples"] == {"train": 8, "valid": 8, "test": 20}
    lines = files.read_jsonl(world / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "valid"] == [2, 4, 6]
    labels = [line["label"] for line in files.read_jsonl(world / "run" / "predictions" / "valid.jsonl")]
    assert sorted(labels) == ["negative"] * 4 + ["positive"] * 4
    page = (world / "run" / "report.md").read_text()
    for lines_again in ("method | prompt | head", "shots | 4 | null", "demos | similar | none"):
        assert f"| {lines_again} |" in page


def test_a_prompt_adds_no_parameters_and_its_checkpoint_stores_demonstrations(world):
    about = json.loads((world / "run" / "checkpoints" / "best" / "config.json").read_text())
    assert about["method"] == "prompt" and about["special_rows"] == 0
    assert len(about["demonstrations"]["examples"]) == 8
    names = weights(world / "run")
    assert not [name for name in names if not name.startswith("body.")]
    assert len(names["body.tokens.weight"]) == about["vocabulary"]


def test_a_stopped_run_resumes_to_the_same_weights_and_results(world):
    assert main(finetune(world, "part", *SIMILAR, "steps=4")) == 0
    assert not same(weights(world / "part"), weights(world / "run"))
    assert main(["finetune", f"resume={world / 'part'}", "steps=6"]) == 0
    assert same(weights(world / "part"), weights(world / "run"))
    ends = [json.loads((world / name / "result.json").read_text())["test"] for name in ("part", "run")]
    assert ends[0] == ends[1]


def test_evaluate_and_predict_use_the_prompt_of_the_run(world):
    assert main(["evaluate", f"run={world / 'run'}", "split=test", "limit.test=20", f"cache={world / 'cache'}",
                 "runtime.threads=1", f"hydra.run.dir={world / 'evaluated'}"]) == 0  # fmt: skip
    was, now = (json.loads((world / name / "result.json").read_text())["test"] for name in ("run", "evaluated"))
    assert now == was
    lines = files.read_jsonl(world / "run" / "predictions" / "test.jsonl")
    rows = splits.load_labelled(loaded(world / "run")[1].prompt.task, "test", None, str(world / "cache")).examples
    chosen = {row.id: row.texts[0] for row in rows}
    (world / "rows.txt").write_text("".join(f"{chosen[line['id']]}\n" for line in lines))
    assert main(["predict", f"run={world / 'run'}", f"input={world / 'rows.txt'}", f"output={world / 'told.jsonl'}",
                 "runtime.threads=1", f"hydra.run.dir={world / 'predicted'}"]) == 0  # fmt: skip
    lines_again = files.read_jsonl(world / "told.jsonl")
    assert [(line["prediction"], line["scores"]) for line in lines_again] == [
        (x["prediction"], x["scores"]) for x in lines
    ]


def test_scores_are_the_mean_over_demonstration_sets(world):
    model, predictor = loaded(world / "run")
    predictor = dataclasses.replace(predictor, demos=dataclasses.replace(predictor.demos, kind="random"))
    examples = [Example(str(i), (f"the dog {verb} to the lake .",), None) for i, verb in enumerate(["ran", "sat"] * 7)]
    examples += predictor.demos.pool.examples[:3]  # an example never demonstrates itself
    actual = predictor.outputs(model, examples, predictor.encode(examples).items)
    expected = np.zeros_like(actual)
    for number in range(3):
        order = np.random.default_rng([0, 2, number]).permutation(8)
        for i, example in enumerate(examples):
            own = [k for k in order if predictor.demos.pool.examples[k].texts != example.texts]
            first = [next(k for k in own if predictor.demos.pool.classes[k] == label) for label in (0, 1)]
            ids = [predictor.demos.ids[k] for k in sorted(first, key=own.index)]
            packed = pack_prompt(predictor.prompt, ids, predictor.prompt.query(example), 160)
            for label, row in enumerate(packed.rows):
                with torch.no_grad():
                    logits = model.body.logits(model.body(torch.tensor([row[:-1]]))[0]).log_softmax(-1)
                each = logits[torch.arange(len(row) - 1), torch.tensor(row[1:])]
                expected[i, label] += each[-packed.scored_counts[label] :].sum() / 3
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_an_ensemble_is_the_mean_of_its_members_scores(world):
    template = "task.prompt.template='{text} it was {label}'"
    assert main(finetune(world, "other", *PROMPT, template, "steps=2", "eval_every=2")) == 0
    common = ["limit.test=20", "split=test", f"cache={world / 'cache'}", "runtime.threads=1", "runtime.precision=fp32"]
    names = {"a": [f"run={world / 'run'}"], "b": [f"run={world / 'other'}"]}
    names["both"] = [f"runs=[{world / 'run'},{world / 'other'}]"]
    actual = {}
    for name, words in names.items():
        assert main(["evaluate", *words, *common, f"hydra.run.dir={world / name}"]) == 0
        lines = files.read_jsonl(world / name / "predictions" / "test.jsonl")
        actual[name] = np.array([list(line["scores"].values()) for line in lines])
    mean = np.exp((np.log(actual["a"]) + np.log(actual["b"])) / 2)
    np.testing.assert_allclose(actual["both"], mean / mean.sum(1, keepdims=True), atol=1e-4)
    assert main(["evaluate", f"runs=[{world / 'run'},{world / 'run'}]"]) == 2


def test_an_exported_prompt_run_is_a_language_model_whose_card_describes_the_prompt(world, capsys):
    assert main(["export", f"run={world / 'run'}", f"out={world / 'exported'}"]) == 0
    assert "has no head" in capsys.readouterr().out
    card = (world / "exported" / "README.md").read_text()
    assert "`{text} all in all it was {label}`" in card and "negative: terrible; positive: great" in card
    peer = AutoModelForCausalLM.from_pretrained(world / "exported").eval()
    model, predictor = loaded(world / "run")
    packed = pack_prompt(predictor.prompt, [], predictor.prompt.query(Example("0", ("the cat sat .",), None)), 160)
    for row in packed.rows:
        with torch.no_grad():
            ours, theirs = model.body.logits(model.body(torch.tensor([row]))), peer(torch.tensor([row])).logits
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# --- other tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_auxiliary_loss_is_an_option_and_a_head_is_trained_on_the_same_examples(world):
    assert main(finetune(world, "aux", *PROMPT, "aux_lm=true", "steps=2", "log_every=1")) == 0
    lines = files.read_jsonl(world / "aux" / "metrics.jsonl")
    assert all({"task_loss", "lm_loss"} <= line.keys() for line in lines if line["split"] == "train")
    assert main(finetune(world, "head", "shots=4", "steps=2")) == 0
    sums = [json.loads((world / name / "environment.json").read_text())["checksums"] for name in ("aux", "head")]
    assert [sums[0][split] for split in ("train", "valid", "test")] == [sums[1][s] for s in ("train", "valid", "test")]
    assert "head.weight" in weights(world / "head")


OTHERS = {
    "choice": ("task=demo_choice",),
    "pronoun": ("task=demo_pronoun", "demos=random"),
    "lstm": ("model.architecture=lstm",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_choices_pronouns_and_an_lstm_work_with_prompts(world, name):
    words = (*PROMPT, *OTHERS[name], "model.n_positions=160", "demo_sets=2", "steps=2", "eval_every=2", "limit.test=8")
    assert main(finetune(world, name, *words)) == 0
    model, predictor = loaded(world / name)
    lines = files.read_jsonl(world / name / "predictions" / "test.jsonl")
    assert len(lines) == 8 and {line["prediction"] for line in lines} <= set(predictor.prompt.task.labels)
    assert model.body.branches == (name != "lstm")


@pytest.mark.slow
def test_regression_predictions_lie_between_two_words(world, tmp_path):
    rows = [{"a": f"the dog ran {i}", "b": "a cat sat", "score": i % 11 / 2} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["task=file", "task.kind=similarity", f"task.train={tmp_path / 'rows.jsonl'}", "task.range=[0,5]",
           "task.text=a", "task.text_b=b", "init=none", "tokenizer=demo",
           "task.prompt.template='{a} {b} ? {label}'", "task.prompt.words.0=no", "task.prompt.words.5=yes"]  # fmt: skip
    assert main(finetune(world, "scores", *own, *SIMILAR, "steps=4", "eval_every=2")) == 0
    assert files.read_config(world / "scores" / "config.yaml")["task"]["loss"] == "interpolation"
    lines = files.read_jsonl(world / "scores" / "predictions" / "valid.jsonl")
    assert len(lines) == 8 and all(0 < line["prediction"] < 5 for line in lines)
    assert sorted(line["label"] < 2.5 for line in lines) == [False] * 4 + [True] * 4
    assert main(["evaluate", f"run={world / 'scores'}", "split=valid", f"hydra.run.dir={world / 'scored'}"]) == 0


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, fragment",
    [
        (("shots=600",), "the training split has too few (negative: "),
        (("shots=1", "method=prompt", "demos=random"), "demos=random: shots=1 leaves no examples"),
        (("method=prompt", "demos=similar"), "without shots=K there are no examples other than the query"),
        (("shots=4", "demos=random"), "needs a prompt, and method=head has none: add method=prompt"),
        (("shots=4", "limit.train=9"), "remove limit.train and limit.valid"),
        (("method=prompt", "task.prompt.content_free=N/A"), "calibrates an untrained model"),
        ((*PROMPT, "similar_by=some/model"), "similar_by=some/model needs demos=similar, but demos="),
        (("shots=4", f"seed={2**32}"), "the seed must be below 2**32"),
    ],
)
def test_conflicting_settings_are_refused(tmp_path, capsys, words, fragment):
    assert main(["finetune", "task=demo_sentiment", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert fragment in capsys.readouterr().err
