"""gpt1 fewshot on the command line with runs of a few steps: sampling, order, scores."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import BigramModel, LetterTokenizer, chain_probability
from worlds import read

import gpt1cli
from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.main import main
from gpt1cli.cli.resolve import compose
from gpt1cli.commands import fewshot as command
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import demo_world
from gpt1cli.prompts import in_context
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.runs import files as runs_files
from gpt1cli.tasks import few_shot, splits
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET = ("runtime.threads=1", "runtime.progress=none", "runtime.precision=fp32")
TASK = build(TaskConfig, read("task/demo_sentiment.yaml")["task"])
POOL = [Example(str(i), (f"text {i}",), int(i % 5 == 0)) for i in range(20)]  # four of class 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two pretraining runs of four steps, a Transformer and an LSTM; three examples fill their positions."""
    root = tmp_path_factory.mktemp("runs")
    (root / "stories.txt").write_text("\n\n".join(demo_world.documents(count=40)))
    words = ["corpus=text", f"corpus.path={root / 'stories.txt'}", "tokenizer=bpe", "tokenizer.merges=300"]
    words += ["model=tiny", "model.n_layer=1", "model.d_model=16", "model.n_head=2", "model.d_ff=32", "steps=4"]
    words += ["model.n_positions=80", "model.pretraining.context=32", f"cache={root / 'cache'}", "keep_checkpoints=[2]"]
    for name, more in (("a", []), ("lstm", ["model.architecture=lstm", "model.lstm_units=24"])):
        assert main(["pretrain", *words, *more, *QUIET, f"hydra.run.dir={root / name}"]) == 0
    return root


def fewshot(into: Path, *words: str) -> int:
    return main(["fewshot", "limit.valid=12", "split=valid", *QUIET, *words, f"hydra.run.dir={into}"])


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_demonstrations_alternate_classes_and_smaller_draws_start_larger_ones(seed):
    sample = in_context.sample_demonstrations(TASK, POOL, 8, seed, balanced=True)
    labels = [example.label for example in sample]
    assert labels == labels[:2] * 4 and sorted(labels[:2]) == [0, 1]
    assert len({example.id for example in sample}) == 8
    assert in_context.sample_demonstrations(TASK, POOL, 3, seed, balanced=True) == sample[:3]
    assert (
        in_context.sample_demonstrations(TASK, POOL, 5, seed, balanced=False)
        == in_context.sample_demonstrations(TASK, POOL, 9, seed, False)[:5]
    )


def test_draws_differ_between_seeds_and_follow_the_data_without_balance():
    first = {in_context.sample_demonstrations(TASK, POOL, 1, seed, balanced=True)[0].label for seed in range(20)}
    assert first == {0, 1}
    counts = Counter(
        e.label for seed in range(300) for e in in_context.sample_demonstrations(TASK, POOL, 4, seed, balanced=False)
    )
    assert counts[1] / counts.total() == pytest.approx(0.2, abs=0.04)  # a standard error of 0.011


def test_regression_labels_are_balanced_by_halves_of_the_range():
    task = build(TaskConfig, read("task/stsb.yaml"))
    pool = [Example(str(i), ("a", "b"), i / 4) for i in range(21)]
    sample = in_context.sample_demonstrations(task, pool, 6, 0, balanced=True)
    assert Counter(example.label >= 2.5 for example in sample) == {True: 3, False: 3}


def test_a_class_with_too_few_examples_is_refused():
    assert len(in_context.sample_demonstrations(TASK, POOL, 8, 0, balanced=True)) == 8
    with pytest.raises(UserError, match=r"shots=10 .* positive \(5 needed, 4 found\).*balanced=false"):
        in_context.sample_demonstrations(TASK, POOL, 10, 0, balanced=True)
    with pytest.raises(UserError, match="shots=21, but train has 20 examples"):
        in_context.sample_demonstrations(TASK, POOL, 21, 0, balanced=False)


def test_orders():
    assert in_context.demonstration_orders(4, "fixed", None, 7) == [[0, 1, 2, 3]]
    assert in_context.demonstration_orders(0, "permutations", None, 7) == [[]]
    (order,) = in_context.demonstration_orders(6, "random", None, 7)
    assert (
        sorted(order) == list(range(6))
        and len({tuple(in_context.demonstration_orders(6, "random", None, s)[0]) for s in range(9)}) > 5
    )
    assert sorted(in_context.demonstration_orders(3, "permutations", 6, 7)) == [
        [0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0],
    ]  # fmt: skip
    several = in_context.demonstration_orders(4, "permutations", None, 7)
    assert len({tuple(demonstration) for demonstration in several}) == len(several) == 8
    assert all(sorted(demonstration) == [0, 1, 2, 3] for demonstration in several)


def test_scores_are_the_mean_over_orders():
    """The query has no text before its slot: the last letter of the last demonstration precedes it."""
    prompt = {"template": "{label} {text}", "words": {"negative": "d", "positive": "a"}, "separator": ""}
    task = build(TaskConfig, {**read("task/demo_sentiment.yaml")["task"], "prompt": prompt})
    demonstration, other = Example("1", ("b",), 0), Example("2", ("c",), 1)
    queries = [Example("3", ("b",), None)]
    orders = [[demonstration, other], [other, demonstration]]
    actual = in_context.score_queries(
        BigramModel(), Prompt.from_task(task, LetterTokenizer()), orders, queries, None, 100
    )
    expected = [(np.log(chain_probability(f"c{w}b")) + np.log(chain_probability(f"b{w}b"))) / 2 for w in "da"]
    assert actual.scores == pytest.approx(np.array([expected]))


def test_a_regression_prediction_lies_between_the_two_words():
    task = build(TaskConfig, {**read("task/stsb.yaml"), "loss": "interpolation"})
    scores = np.log([[0.2, 0.6], [0.3, 0.1], [0.1, 0.1]])
    split = Split([Example(str(i), ("a", "b"), y) for i, y in enumerate([4.0, 0.5, 3.0])], [], 0, 0)
    lines = in_context.in_context_records(task, split, scores)
    assert [line["prediction"] for line in lines] == pytest.approx([3.75, 1.25, 2.5])
    assert lines[0]["label"] == 4.0
    actual = in_context.compute_in_context_metrics(task, split, scores)
    assert actual["pearson"] == pytest.approx(np.corrcoef([4, 0.5, 3], [3.75, 1.25, 2.5])[0, 1])


def test_seeds_are_summarised():
    actual = in_context.summarize_seeds([{"accuracy": 0.5}, {"accuracy": 0.75}, {"accuracy": 0.7}])["accuracy"]
    assert actual == {
        "mean": pytest.approx(0.65), "std": pytest.approx(statistics.stdev([0.5, 0.75, 0.7])), "min": 0.5, "max": 0.75,
    }  # fmt: skip
    assert in_context.summarize_seeds([{"accuracy": 0.5}])["accuracy"]["std"] is None


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["a", "lstm"])
def test_every_score_equals_that_of_one_plain_row(runs, tmp_path, init):
    words = ("task=demo_sentiment", "shots=2", "seeds=[13]", "order=random", "limit.train=40")
    assert fewshot(tmp_path / "run", *words, f"init={runs / init}") == 0
    model, tokenizer = gpt1cli.load(runs / init)
    pool = {e["id"]: e for e in demo_world.examples("demo_sentiment", "train")}
    known = {e["id"]: e for e in demo_world.examples("demo_sentiment", "valid")}
    sample = in_context.sample_demonstrations(TASK, labelled(pool), 2, 13, balanced=True)
    newline, word = tokenizer.encode("a\na")[1:-1], {"negative": "terrible", "positive": "great"}
    demonstrations = []
    for i in in_context.demonstration_orders(2, "random", None, 13)[0]:
        demonstrations.append(
            tokenizer.encode(f"{pool[sample[i].id]['text']} all in all it was {word[pool[sample[i].id]['label']]}")
        )
    lines = runs_files.read_jsonl(tmp_path / "run" / "predictions" / "valid.jsonl")
    assert len(lines) == 12 and {"shots", "seed"}.isdisjoint(lines[0])
    dropped = 0
    for line in lines:
        cue = tokenizer.encode(known[line["id"]]["text"]) + tokenizer.encode("all in all it was")
        longest = max(len(tokenizer.encode(w)) for w in word.values())
        remaining = [[*demonstration, *newline] for demonstration in demonstrations]
        while sum(map(len, remaining)) + len(cue) + longest > 80:
            remaining, dropped = remaining[1:], dropped + 1
        for label, text in word.items():
            ids = [*(t for demonstration in remaining for t in demonstration), *cue, *tokenizer.encode(text)]
            with torch.no_grad():
                log_p = model.logits(model(torch.tensor([ids])))[0].log_softmax(-1)
            n = len(tokenizer.encode(text))
            expected = sum(log_p[i - 1, ids[i]].item() for i in range(len(ids) - n, len(ids)))
            assert line["scores"][label] == pytest.approx(expected, abs=1e-5)
        assert line["prediction"] == max(line["scores"], key=line["scores"].__getitem__)
    result = result_of(tmp_path / "run")
    right = [line["label"] == line["prediction"] for line in lines]
    assert result["valid"]["accuracy"] == pytest.approx(sum(right) / 12)
    assert result["valid"]["dropped"] == pytest.approx(dropped / 12) and result["valid"]["cut"] == 0


def labelled(pool: dict[str, dict]) -> list[Example]:
    from gpt1cli.tasks import splits

    whole = [Example(e["id"], (e["text"],), TASK.labels.index(e["label"])) for e in pool.values()]
    return splits.sample_examples(whole, 40, 0)


def test_a_curve_over_shots_and_seeds(runs, tmp_path, capsys):
    words = ("task=demo_sentiment", "shots=[0,1,3]", "seeds=[1,2]", f"init={runs / 'a'}")
    assert fewshot(tmp_path / "run", *words, "checkpoint=2") == 0
    result, lines = result_of(tmp_path / "run"), runs_files.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [(line["shots"], line["seed"]) for line in lines] == [(0, 1), (1, 1), (1, 2), (3, 1), (3, 2)]
    several = [line["accuracy"] for line in lines if line["shots"] == 3]
    expected = {
        "mean": statistics.mean(several), "std": statistics.stdev(several), "min": min(several), "max": max(several),
    }  # fmt: skip
    assert result["shots"]["3"]["valid"]["accuracy"] == pytest.approx(expected)
    assert result["shots"]["3"]["seeds"]["2"]["valid"]["accuracy"] == several[1]
    assert result["shots"]["0"]["valid"]["accuracy"]["std"] is None and result["step"] == 2
    assert result["valid"]["accuracy"] == pytest.approx(expected["mean"]) and result["seeds"] == [1, 2]
    with (tmp_path / "run" / "plots" / "fewshot.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]
    assert [row["shots"] for row in rows] == ["0", "1", "3"] and float(rows[2]["mean"]) == pytest.approx(
        expected["mean"]
    )
    page = (tmp_path / "run" / "report.md").read_text()
    assert "## Results by number of demonstrations" in page and "](plots/fewshot.png)" in page
    predicted = runs_files.read_jsonl(tmp_path / "run" / "predictions" / "valid.jsonl")
    assert len(predicted) == 5 * 12 and (predicted[-1]["shots"], predicted[-1]["seed"]) == (3, 2)
    assert main(["report", f"runs=[{tmp_path / 'run'}]", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    demonstrations = f"shots=3: accuracy (valid) {expected['mean']:.3f} ± {expected['std']:.3f}"
    assert "## In context, without training" in page and demonstrations in page


def test_a_user_prompt_with_calibration_and_a_description(runs, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "template: 'premise {premise} so {label} , {hypothesis}'\n"
        "words: {entailment: ['yes', sure], neutral: maybe, contradiction: 'no'}\n"
        "description: true or not ?\nnormalise: mean\ncontent_free: nothing\n"
    )
    words = ("task=demo_entailment", "shots=1", "seeds=[3]", "order=permutations", f"init={runs / 'a'}")
    own = (f"prompt={tmp_path / 'mine.yaml'}", "task.prompt.separator= / ")
    assert fewshot(tmp_path / "run", *words, *own) == 0
    prompt = runs_files.read_config(tmp_path / "run" / "config.yaml")["task"]["prompt"]
    assert (prompt["template"], prompt["separator"]) == ("premise {premise} so {label} , {hypothesis}", " / ")
    assert fewshot(tmp_path / "plain", *words, *own, "task.prompt.content_free=null") == 0
    for name in ("run", "plain"):
        assert len(runs_files.read_jsonl(tmp_path / name / "predictions" / "valid.jsonl")) == 12
    first, second = (
        runs_files.read_jsonl(tmp_path / name / "predictions" / "valid.jsonl")[0]["scores"] for name in ("run", "plain")
    )
    assert first != second


@pytest.mark.parametrize("task", ["demo_choice", "demo_pronoun"])
def test_choices_fill_the_slot(runs, tmp_path, task):
    assert fewshot(tmp_path / "run", f"task={task}", "shots=1", "seeds=[5]", f"init={runs / 'a'}") == 0
    assert 0 <= result_of(tmp_path / "run")["valid"]["accuracy"] <= 1


def test_rows_without_a_header_as_released(runs, tmp_path):
    for name, n in (("train", 20), ("test", 6)):
        rows = [
            f'{i % 2},"the {"play" if i % 3 else "circus"}, ; ; was {"lovely" if i % 2 else "awful"}"' for i in range(n)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    files = (f"task.train={tmp_path / 'train.csv'}", f"task.test={tmp_path / 'test.csv'}")
    words = ("task=mr", *files, "shots=4", "seeds=[5]", "split=test", f"init={runs / 'a'}")
    assert main(["fewshot", *words, *QUIET, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    lines = runs_files.read_jsonl(tmp_path / "run" / "predictions" / "test.jsonl")
    assert [(line["id"], line["label"]) for line in lines] == [(str(i + 1), str(i % 2)) for i in range(6)]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (
            ["task.prompt.template={text} it was"],
            "task.prompt.template={text} it was: it has 0 {label}, but needs exactly one",
        ),
        (["task.prompt.template={txt} {label}"], "unknown field {txt}; known: {text}, {label}"),
        (
            ["task.prompt.words.positive=TERRIBLE"],
            "terrible (negative) and TERRIBLE (positive) have the same tokens",
        ),
        (["shots=1000"], "shots=1000 in equal numbers for each class, but train has too few examples"),
        (["shots=8", "limit.train=9"], "(4 needed, 2 found); use a smaller shots=, or balanced=false"),
        (["task.prompt.description=" + "so it is " * 40], "does not fit n_positions=80"),
        (["shots=[1,1]"], "shots=[1, 1]: needs at least one value, without duplicates"),
        (["shots=-1"], "shots=-1 is refused"),
        (["seed=3"], "gpt1 fewshot takes seeds=["),
        (["permutations=3"], "permutations=3 needs order=permutations, but order=fixed"),
        (["split=train"], "split=train: the demonstrations come from it"),
        (["split=tset"], "tset: no such split of task=demo_sentiment"),
        (["init=none"], "init=none: random weights predict nothing useful"),
        (["prompt=RUN/none.yaml"], "none.yaml: no such file; expected a yaml file with template and words"),
        (["checkpoint=7"], "checkpoints/7: no such checkpoint; available: 2, 4, best, last"),
        (["pool=2", "split=valid"], "pool=2 answers the test split of gpt1 finetune: remove split=valid"),
        (["pool=2", "split=null", "limit.train=9"], "pool=2 sets the size of train: remove limit.train"),
        (
            ["pool=2", "split=null", "seeds=[4294967296]"],
            "with pool=2 the seeds must be below 2**32",
        ),
        (["pool=300", "split=null"], "the training split has too few (negative: 240, positive: 240)"),
        (["task=ax"], "shots=2: task=ax has no train split; use shots=0"),
    ],
)
def test_invalid_settings_are_refused(runs, tmp_path, capsys, words, fragment):
    words = [word.replace("RUN", str(runs)) for word in words]
    assert fewshot(tmp_path / "run", "task=demo_sentiment", "shots=2", f"init={runs / 'a'}", *words) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_pool_uses_the_splits_of_finetune(runs, tmp_path):
    """pool=K: demonstrations from the K examples per class of gpt1 finetune shots=K; its test split is predicted."""
    words = ("task=demo_sentiment", f"init={runs / 'a'}", "pool=3", "shots=6", "balanced=false", "seeds=[21]")
    assert main(["fewshot", *words, *QUIET, "limit.test=5", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    composer = Composer("fewshot")
    built = compose(composer, composer.check_overrides([*words])).config
    train = [*splits.load_labelled(TASK, "train", None, ".").examples]
    (demonstrations,) = command.ordered_demonstrations(built, train, 6, 21)
    assert {e.id for e in demonstrations} == {e.id for e in few_shot.draw_examples(TASK, train, 3, 21)[0]}
    assert result_of(tmp_path / "run")["examples"] == {"test": 5}


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["sst2", "rte", "stsb", "story_cloze", "winograd"])
def test_tasks_of_the_papers_are_predicted(test_hub, runs, tmp_path, task):
    split, shots = ("test", 0) if task == "winograd" else ("valid", 2)
    words = (f"task={task}", f"init={runs / 'a'}", f"hub={test_hub}", f"cache={runs / 'cache'}", f"shots={shots}")
    words += ("limit.valid=4", "limit.test=4", "limit.train=200", f"split={split}", "seeds=[13]")
    assert main(["fewshot", *words, *QUIET, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert result_of(tmp_path / "run")["examples"][split] == 4


@pytest.mark.realdata
def test_words_of_shipped_prompts_are_single_tokens_of_the_published_vocabulary(test_hub):
    from gpt1cli.config import options
    from gpt1cli.text import bpe

    vocabulary = bpe.load(Path(test_hub) / "openai-community" / "openai-gpt")
    for name in options.names("task"):
        prompt = options.values("task", name).get("prompt", {})
        for word in prompt.get("words", {}).values():
            assert len(vocabulary.encode(word)) == 1, f"{name}: {word}"
