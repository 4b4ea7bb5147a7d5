"""All kinds of tasks through the command line: predictions, and metrics recomputed by other libraries."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss
from worlds import read

from gpt1cli.cli.main import main
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.evaluation.evaluate import adopt_trained_loss, check_same_labels
from gpt1cli.runs import files, record
from gpt1cli.tasks.classification import compute_metrics, decode_outputs
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split
from gpt1cli.training.device import TOKEN_BUDGET
from gpt1cli.training.objectives.supervised import supervised_objective

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = (
    "model=tiny", "model.n_layer=1", "model.d_model=16", "model.n_head=2", "model.d_ff=32", "init=none",
    "batch_size=8", "runtime.threads=1", "runtime.progress=none", "runtime.precision=fp32",
)  # fmt: skip
LIMITS = ("limit.train=24", "limit.valid=20", "limit.test=30")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Build the demo vocabulary once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """STS-B and MRPC in the hub's columns, with sentences of our own: in similar pairs the second repeats the first."""
    root, draw = tmp_path_factory.mktemp("hub"), random.Random(0)
    words = "the cat dog bird sat ran slept on under mat tree house big small red".split()
    lines = ["---", "configs:"]
    for subset in ("stsb", "mrpc"):
        lines += [f"- config_name: {subset}", "  data_files:"]
        for split, count in (("train", 24), ("validation", 16), ("test", 12)):
            first = [" ".join(draw.choices(words, k=6)) for _ in range(count)]
            like = [draw.randrange(2) for _ in first]
            second = [a if same else " ".join(draw.choices(words, k=6)) for a, same in zip(first, like, strict=True)]
            label = [4.0 * same + draw.random() for same in like] if subset == "stsb" else like
            if subset == "stsb" and split == "test":
                label = [-1.0] * count
            folder = root / "nyu-mll/glue" / subset
            folder.mkdir(parents=True, exist_ok=True)
            rows = {"sentence1": first, "sentence2": second, "label": label, "idx": list(range(count))}
            datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {subset}/{split}-*"]
    (root / "nyu-mll/glue/README.md").write_text("\n".join([*lines, "---", ""]))
    return root


def finetune(cache: Path, run: Path, *words: str) -> tuple[dict, dict[str, list[dict]]]:
    """The result of a fine-tuning run, and its predictions by split."""
    length = () if any(word.startswith("epochs=") for word in words) else ("steps=6",)
    assert main(["finetune", *SMALL, *length, f"cache={cache}", f"hydra.run.dir={run}", *words]) == 0
    predicted = {path.stem: files.read_jsonl(path) for path in (run / "predictions").glob("*.jsonl")}
    return json.loads((run / "result.json").read_text()), predicted


@pytest.mark.parametrize("name", ["demo_similarity", "demo_choice", "demo_pronoun", "demo_entailment"])
def test_every_layout_trains_and_metrics_match_its_predictions(name, cache, tmp_path):
    result, predicted = finetune(cache, tmp_path / "run", f"task={name}", *LIMITS)
    assert not (tmp_path / "run/submission").exists()
    assert predicted.keys() == {"valid", "test"}
    for split, lines in predicted.items():
        labels, predictions = ([line[key] for line in lines] for key in ("label", "prediction"))
        assert result[split]["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
        names = list(lines[0]["scores"])
        assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in lines)
        assert all(line["scores"][line["prediction"]] >= max(line["scores"].values()) - 1e-6 for line in lines)
        scores = np.array([[line["scores"][name] for name in names] for line in lines])
        expected = log_loss([names.index(label) for label in labels], scores, labels=range(len(names)))
        assert result[split]["loss"] == pytest.approx(expected, abs=1e-4)


def test_seeds_train_on_different_rows_and_test_on_the_same(cache, tmp_path):
    ids = []
    for seed in ("seed=0", "seed=1"):
        _, predicted = finetune(cache, tmp_path / seed[-1], "task=demo_sentiment", seed, *LIMITS)
        ids.append([line["id"] for line in predicted["test"]])
    assert ids[0] == ids[1]
    train, other = (record.read_environment(tmp_path / seed)["checksums"] for seed in "01")
    assert train["train"] != other["train"] and train["valid"] == other["valid"]


@pytest.mark.parametrize("loss", ["mse", "ordinal"])
def test_scores_are_predicted_and_correlated(loss, cache, hub, tmp_path):
    words = ("task=stsb", f"task.loss={loss}", "tokenizer=demo", f"hub={hub}", "lr=0.01", "epochs=8")
    result, predicted = finetune(cache, tmp_path / "run", *words)
    labels, predictions = ([line[key] for line in predicted["valid"]] for key in ("label", "prediction"))
    assert len(set(predictions)) > 1
    assert result["valid"]["pearson"] == pytest.approx(pearsonr(labels, predictions)[0], abs=1e-4)
    assert result["valid"]["spearmanr"] == pytest.approx(spearmanr(labels, predictions)[0], abs=1e-4)
    assert "test" not in result and {line["label"] for line in predicted["test"]} == {None}
    submitted = [f"{i}\t{min(max(line['prediction'], 0), 5):.3f}" for i, line in enumerate(predicted["test"])]
    submission = (tmp_path / "run/submission/STS-B.tsv").read_text()
    assert submission.splitlines() == ["index\tprediction", *submitted]
    if loss == "ordinal":
        assert all(0 <= score <= 5 for score in predictions)
    else:
        assert result["valid"]["loss"] == pytest.approx(np.mean((np.array(labels) - predictions) ** 2), abs=1e-4)


def test_soft_f1_is_computed_over_whole_batches(cache, hub, tmp_path, capsys, monkeypatch):
    words, counts = ("task=mrpc", "task.loss=soft_f1", "tokenizer=demo", f"hub={hub}"), []

    def counting(*arguments):
        objective = supervised_objective(*arguments)
        return lambda model, batch: counts.append(batch.count) or objective(model, batch)

    monkeypatch.setattr("gpt1cli.commands.finetune.supervised_objective", counting)
    monkeypatch.setitem(TOKEN_BUDGET, "cpu", 40)  # two of these rows: any other loss is computed in micro-batches
    result, predicted = finetune(cache, tmp_path / "run", *words)
    assert counts == [8] * 6
    labels, predictions = ([line[key] == "equivalent" for line in predicted["test"]] for key in ("label", "prediction"))
    assert result["test"]["f1"] == pytest.approx(f1_score(labels, predictions, zero_division=0))
    assert 0 < result["valid"]["loss"] < 1
    assert main(["finetune", *SMALL, *words, "runtime.micro_batch=2", f"hydra.run.dir={tmp_path / 'no'}"]) == 2
    assert "task.loss=soft_f1 needs the whole batch: runtime.micro_batch=2 would split it" in capsys.readouterr().err

    def short(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("gpt1cli.commands.finetune.supervised_objective", lambda *_: short)
    assert main(["finetune", *SMALL, *words, f"hydra.run.dir={tmp_path / 'short'}"]) == 2
    assert "use a smaller batch_size=" in capsys.readouterr().err


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entailment(cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("entailment") / "run"
    finetune(cache, run, "task=demo_entailment", *LIMITS)
    return run


def evaluate(run: Path, into: Path, *words: str) -> int:
    runtime = ("runtime.threads=1", "runtime.progress=none", "runtime.precision=fp32")
    return main(["evaluate", f"run={run}", f"hydra.run.dir={into}", *runtime, *words])


def test_evaluating_a_run_again_gives_the_same_scores(entailment, tmp_path):
    assert evaluate(entailment, tmp_path / "again", *LIMITS) == 0
    first, again = (json.loads((run / "result.json").read_text()) for run in (entailment, tmp_path / "again"))
    for split in ("valid", "test"):
        assert again[split] == pytest.approx(first[split], abs=1e-6)
        path = f"predictions/{split}.jsonl"
        assert (entailment / path).read_text() == (tmp_path / "again" / path).read_text()
    assert (again["command"], again["name"], again["status"]) == ("evaluate", "demo_entailment", "finished")
    checksums = [record.read_environment(run)["checksums"] for run in (entailment, tmp_path / "again")]
    assert {name: checksums[0][name] for name in ("tokenizer", "valid", "test")} == checksums[1]
    assert f"{again['test']['accuracy']:.6g}" in (tmp_path / "again" / "report.md").read_text()


def test_evaluations_are_in_the_report(entailment, tmp_path, capsys):
    assert evaluate(entailment, tmp_path / "one", "split=test", *LIMITS) == 0
    result = json.loads((tmp_path / "one/result.json").read_text())
    assert main(["report", f"runs=[{tmp_path / 'one'}]", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    row = f"| demo_entailment | default | 0 | accuracy (test) {result['test']['accuracy']:.3f} |"
    assert "## Evaluation" in (page := (tmp_path / "report/report.md").read_text()) and row in page
    assert main(["report", f"runs=[{tmp_path / 'report'}]", f"hydra.run.dir={tmp_path / 'no'}"]) == 2
    assert "of gpt1 pretrain, finetune, evaluate, zeroshot, fewshot" in capsys.readouterr().err


def test_a_custom_task_is_evaluated_without_its_folder_and_with_changes(cache, hub, tmp_path):
    """The checkpoint contains the whole task; keys on the command line change it."""
    folder = tmp_path / "conf/task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(read("task/mrpc.yaml") | {"name": "mine"}))
    finetune(cache, tmp_path / "run", "--config-dir", str(folder.parent), "task=mine", "tokenizer=demo", f"hub={hub}")
    words = (f"hub={hub}", "task.metrics=[accuracy]", "task.loss=soft_f1")
    assert evaluate(tmp_path / "run", tmp_path / "scored", *words) == 0
    first, scored = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", tmp_path / "scored"))
    assert scored["name"] == "mine" and scored["test"].keys() == {"loss", "accuracy"}
    assert scored["test"]["accuracy"] == pytest.approx(first["test"]["accuracy"])
    assert scored["test"]["loss"] != pytest.approx(first["test"]["loss"])


def test_a_split_can_be_removed(entailment, tmp_path):
    assert evaluate(entailment, tmp_path / "run", "~task.splits.test", *LIMITS) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["examples"] == {"valid": 20}


def test_the_training_split_can_be_evaluated(entailment, tmp_path):
    assert evaluate(entailment, tmp_path / "train", "split=train", *LIMITS) == 0
    result = json.loads((tmp_path / "train/result.json").read_text())
    assert result["examples"] == {"train": 24} and "valid" not in result
    lines = files.read_jsonl(tmp_path / "train/predictions/train.jsonl")
    accuracy = accuracy_score([line["label"] for line in lines], [line["prediction"] for line in lines])
    assert result["train"]["accuracy"] == pytest.approx(accuracy)


def test_another_task_needs_the_same_labels(entailment, tmp_path, capsys):
    root = tmp_path / "hub/nyu-mll/glue/ax"
    root.mkdir(parents=True)
    rows = {"premise": ["The cat sat."] * 3, "hypothesis": ["A cat sat.", "No.", "It ran."], "label": [-1] * 3}
    datasets.Dataset.from_dict(rows).to_parquet(root / "test-00000-of-00001.parquet")
    card = "---\nconfigs:\n- config_name: ax\n  data_files:\n  - split: test\n    path: ax/test-*\n---\n"
    (root.parent / "README.md").write_text(card)
    assert evaluate(entailment, tmp_path / "ax", "task=ax", f"hub={tmp_path / 'hub'}") == 0
    lines = files.read_jsonl(tmp_path / "ax/predictions/test.jsonl")
    assert [line["label"] for line in lines] == [None] * 3
    assert {line["prediction"] for line in lines} <= {"entailment", "neutral", "contradiction"}
    assert "test" not in json.loads((tmp_path / "ax/result.json").read_text())
    assert evaluate(entailment, tmp_path / "no", "task=demo_sentiment") == 2
    error = capsys.readouterr().err
    assert "task=demo_sentiment has labels negative, positive" in error
    assert "was trained on task=demo_entailment, labels entailment, neutral, contradiction; use a task" in error


def test_only_fine_tuned_runs_are_accepted(entailment, cache, tmp_path, capsys):
    assert main(["evaluate"]) == 2
    assert "run is needed: folder of a fine-tuned run" in capsys.readouterr().err
    pretrained = tmp_path / "pretrained"
    words = [word for word in SMALL if not word.startswith("init")]
    words += ["corpus=demo", "steps=1", f"hydra.run.dir={pretrained}", f"cache={cache}"]
    assert main(["pretrain", *words]) == 0
    capsys.readouterr()
    assert evaluate(pretrained, tmp_path / "a") == 2
    assert f"run={pretrained} is not a fine-tuned run: its checkpoint has no task" in capsys.readouterr().err
    shutil.rmtree(pretrained)
    assert evaluate(tmp_path / "nowhere", tmp_path / "a") == 2
    assert f"run={tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err
    assert evaluate(entailment, tmp_path / "b", "split=tset") == 2
    assert "tset: no such split of task=demo_entailment; did you mean test?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


# --- functions --------------------------------------------------------------------------------------------------------


def task(name: str, **changes: object) -> TaskConfig:
    return build(TaskConfig, read(f"task/{name}.yaml") | changes)


def test_decoded_outputs_computed_by_hand():
    outputs = np.log(np.array([[0.1, 0.2, 0.3, 0.4, 1e-9, 1e-9], [1, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]], dtype=np.float32))
    assert decode_outputs(task("stsb", loss="ordinal"), outputs) == pytest.approx([0.2 + 0.6 + 1.2, 0.0], abs=1e-6)
    assert decode_outputs(task("stsb"), np.array([[2.5], [-0.5]])).tolist() == [2.5, -0.5]
    assert decode_outputs(task("rte"), np.array([[0.1, 0.2], [3, -1]])).tolist() == [1, 0]


def test_interpolated_scores_computed_by_hand():
    interpolated, outputs = task("stsb", loss="interpolation"), np.log(np.array([[0.25, 0.75], [1.0, 3.0]], np.float32))
    assert decode_outputs(interpolated, outputs) == pytest.approx([3.75, 3.75], abs=1e-6)
    labelled = [Example(str(i), ("a", "b"), score) for i, score in enumerate((5.0, 2.5))]
    metrics = compute_metrics(
        interpolated, Split(labelled, [], 0, 0), np.log(np.array([[0.25, 0.75], [0.4, 0.6]], np.float32))
    )
    # full weight on the second word: -log 0.75; half on each: 0.5 log(0.5 / 0.4) + 0.5 log(0.5 / 0.6)
    assert metrics["loss"] == pytest.approx((0.287682 + 0.020411) / 2, abs=1e-5)


def test_labels_in_another_order_are_refused():
    rte, wnli = task("rte"), task("wnli")
    with pytest.raises(UserError, match="task=wnli has labels not_entailment, entailment"):
        check_same_labels(rte, wnli, "run=here")
    check_same_labels(rte, task("qnli"), "run=here")
    check_same_labels(rte, task("rte", loss="soft_f1"), "run=here")
    check_same_labels(task("race"), task("story_cloze"), "run=here")  # one score per answer, whatever their number
    with pytest.raises(
        UserError, match=r"task=stsb has scores of \[0, 5\], loss ordinal, but run=here was trained on .*use a task"
    ):
        check_same_labels(task("stsb"), task("stsb", loss="ordinal"), "run=here")
    interpolated = task("stsb", loss="interpolation")  # a run with method=prompt keeps its loss
    check_same_labels(interpolated, adopt_trained_loss(task("stsb"), interpolated), "run=here")
    assert adopt_trained_loss(task("stsb"), task("stsb")) == task("stsb") and adopt_trained_loss(
        task("rte"), interpolated
    ) == task("rte")
    with pytest.raises(UserError, match="has layout similarity, but run=here was trained with layout pair"):
        check_same_labels(rte, task("rte", layout="similarity"), "run=here")


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_the_doctor_lists_available_and_missing_data(hub, tmp_path, capsys):
    assert main(["doctor", "what=[tasks]", f"hub={hub}", f"hydra.run.dir={tmp_path / 'run'}", f"cache={tmp_path}"]) == 0
    entries = {
        (one["kind"], one["name"]): one for one in json.loads((tmp_path / "run/result.json").read_text())["found"]
    }
    assert entries["task", "mrpc"]["state"] == entries["task", "demo_choice"]["state"] == "available"
    assert entries["corpus", "demo"]["state"] == "available"
    own = {entries["task", "mr"]["state"], entries["task", "file"]["state"], entries["corpus", "text"]["state"]}
    assert own == {"your own files: task.train=FILE", "your own files: corpus.path=FILE"}
    weights = entries["init", "openai"]
    assert weights["state"] == "missing" and "openai-community/openai-gpt" in weights["missing"]
    assert entries["task", "snli"]["state"] == "missing" and "stanfordnlp/snli" in entries["task", "snli"]["remedy"]
    assert "given out by form" in entries["task", "story_cloze"]["remedy"]
    assert "task=story_cloze" in capsys.readouterr().out
    assert main(["doctor", "--config-dir", str(tmp_path)]) == 2
    assert "the built-in tasks and corpora: remove --config-dir" in capsys.readouterr().err
