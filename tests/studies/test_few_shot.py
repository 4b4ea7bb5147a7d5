"""Studies on few examples: which cells they take, which run of a grid counts, and the table that they make."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import planned, task_config, write_run
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.commands import ablation, finetune
from gpt1cli.config.schema import UserError
from gpt1cli.reporting import bootstrap, lmbff_table
from gpt1cli.reporting.collect import Finished, find_runs
from gpt1cli.reporting.paper_tables import FIELDS
from gpt1cli.runs import files, record
from gpt1cli.studies import cells, few_shot

pytestmark = pytest.mark.usefixtures("undrawn")

# --- which cells ------------------------------------------------------------------------------------------------------


def cells_of(*words: str) -> dict[str, Any]:
    return {cell.name: cell for stage in few_shot.stages(planned(*words)) for cell in stage(None)}


def test_the_whole_study_is_seven_rows_of_every_task_with_five_seeds_over_the_grid():
    config = planned("study=lmbff", "tasks=[snli,stsb]")  # two of nine, for time's sake
    assert config.study.tasks == ["sst2", "cola", "mnli", "snli", "qnli", "rte", "mrpc", "qqp", "stsb"]
    assert config.seeds == [13, 21, 42, 87, 100] and len(few_shot.grid_of(config)) == 9
    searches, rows = (stage(None) for stage in few_shot.stages(config)[1:])
    assert len(searches) == 2 * 5 and len(rows) == len({cell.name for cell in rows}) == 2 * (1 + 5 + 5 * 5 * 9)
    by_name = {cell.name: cell for cell in [*searches, *rows]}
    search = by_name["search-stsb-seed21"].config
    assert (search.what, search.shots, search.seed, search.tune) == ("templates", 16, 21, 100)
    assert {"batch_size=8", "lr=1e-05"} <= set(search.cells)  # what LM-BFF tunes its candidates with
    cell = by_name["snli-auto_demos-seed42-batch2-lr2e-05"]
    assert cell.after == ("search-snli-seed42",) and cell.group == "snli-auto_demos-seed42"
    one = cell.config
    assert (one.method, one.demos, one.demo_sets, one.shots, one.seed) == ("prompt", "similar", 4, 16, 42)
    assert (one.batch_size, one.lr, one.steps, one.eval_every, one.aux_lm) == (2, 2e-5, 1000, 100, False)
    head = by_name["stsb-head-seed100-batch8-lr5e-05"].config
    assert (head.method, head.demos, head.task.loss, head.demo_sets) == ("head", "none", "mse", 16)
    assert by_name["stsb-prompt-seed100-batch8-lr5e-05"].config.task.loss == "interpolation"
    asked = by_name["stsb-incontext-seed87"].config
    assert (asked.shots, asked.pool, asked.seeds, asked.balanced) == (32, 16, [87], False)
    assert by_name["stsb-zeroshot"].config.shots == 0 and "stsb-zeroshot-seed21" not in by_name


def test_it_can_be_restricted():
    words = ["study=lmbff", "tasks=[snli]", "variants=[incontext,prompt_demos]", "seeds=[5]", "shots=4", "steps=30"]
    cells = cells_of(*words, "grid.batch_size=[4]", "grid.lr=[1e-3,2e-3]", "demos=random", "demo_sets=2")
    names = ["snli-incontext-seed5", "snli-prompt_demos-seed5-batch4-lr0.001", "snli-prompt_demos-seed5-batch4-lr0.002"]
    assert list(cells) == names
    assert (cells[names[0]].config.shots, cells[names[0]].config.pool) == (12, 4)  # as many as there are
    one = cells[names[1]].config
    assert (one.shots, one.steps, one.demos, one.demo_sets) == (4, 30, "random", 2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["study=lmbff", "variants=[prompts]"], "prompts: no such row of study=lmbff; did you mean prompt?"),
        (["study=lmbff", "lr=1e-3"], "study=lmbff: lr=: the grid says which: grid.lr=[...]"),
        (["study=lmbff", "demos=none"], "the rows say where there are none"),
        (["study=lmbff", "method=head"], "method=: the rows say how: variants=[...]"),
        (["study=lmbff", "ablation=full"], "ablation=full: study=lmbff has rows of its own"),
        (["study=lmbff", "grid.lr=[]"], "grid.lr=[]: at least one, each once"),
        (["study=lmbff", "grid.lr=[-1]"], "grid.lr[0]=-1 is refused: it must be above 0"),
        (["study=table5", "grid.lr=[1]"], "grid is for studies on few examples, as study=lmbff; study=table5 has none"),
        (["study=lmbff_demo", "model=mini"], "model=mini: study=lmbff_demo pretrains the models of its cells"),
    ],
)
def test_a_mistake_ends_the_study_before_it_begins(tmp_path, capsys, words, told):
    assert main(["sweeps", f"out={tmp_path / 'out'}", f"hub={tmp_path}", *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- running ----------------------------------------------------------------------------------------------------------

VARIANTS = "variants=[zeroshot,incontext,head,auto_demos]"


def study(root: Path, run: str, *more: str) -> list[str]:
    """A study of one task on three examples of each class, with two points of the grid and its own pretraining."""
    small = [word for word in SMALL if not word.startswith("runtime")] + ["model.n_positions=96"]
    text = ["corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=60", "steps=2"]
    return [
        "sweeps", "study=lmbff_demo", f"study.pretraining={json.dumps([*small, *text])}", "tasks=[demo_sentiment]",
        VARIANTS, "seeds=[13]", "shots=3", "steps=2", "eval_every=1", "demos=random", "demo_sets=2",
        "grid.batch_size=[4]", "grid.lr=[1e-3,1e-2]", "study.search=['what=words','pieces=3','tune=2']", "limit.test=8",
        "runtime.threads=1", "runtime.progress=none", f"cache={root / 'cache'}", f"out={root / 'out'}",
        f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    assert main(study(root, "done")) == 0
    return root / "done"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_all_rows_learn_from_the_same_examples_and_are_tested_on_the_same(done):
    home = done / "cells"
    names = ["head", "auto_demos"]
    trained = [home / f"demo_sentiment-{name}-seed13-batch4-lr{lr}" for name in names for lr in ("0.001", "0.01")]
    asked = [home / "demo_sentiment-zeroshot", home / "demo_sentiment-incontext-seed13"]
    search = home / "search-demo_sentiment-seed13"
    assert {path.name for path in home.iterdir()} == {"pretrain-transformer"} | {
        p.name for p in [*trained, *asked, search]
    }
    sums = [record.environment(path)["checksums"] for path in trained]
    assert len({one["train"] for one in sums}) == len({one["valid"] for one in sums}) == 1
    assert record.environment(search)["checksums"]["train"] == sums[0]["train"]
    ids = [[line["id"] for line in files.read_jsonl(p / "predictions" / "test.jsonl")] for p in [*trained, *asked]]
    assert all(one == ids[0] for one in ids) and len(ids[0]) == 8
    assert all(
        files.read_config(path / "config.yaml")["init"] == str(home / "pretrain-transformer") for path in trained
    )
    auto = files.read_config(trained[-1] / "config.yaml")
    best = files.read_config(search / "best.yaml")
    assert auto["prompt"] == str(search / "best.yaml") and auto["task"]["prompt"]["words"] == best["words"]
    assert result(asked[1])["shots"].keys() == {"6"}
    assert result(done)["cells"] == 8 and result(done)["failed"] == {}


def test_of_a_grid_the_run_that_validation_chooses_counts_and_keeps_its_weights(done):
    for name in ("head", "auto_demos"):
        trials = sorted((done / "cells").glob(f"demo_sentiment-{name}-seed13-*"))
        scores = [(result(path)["valid"]["accuracy"], -result(path)["valid"]["loss"]) for path in trials]
        chosen = trials[int(np.argmax([first + second * 1e-6 for first, second in scores]))]
        assert [path for path in trials if (path / "checkpoints").exists()] == [chosen]
    table = list(csv.DictReader((done / "table.csv").open()))
    value = {row["row"]: float(row["mean"]) for row in table if row["table"] == "lmbff"}
    assert value["prompt (automatic) + demonstrations"] == pytest.approx(100 * result(chosen)["test"]["accuracy"])
    assert set(value) == {
        "prompt, zero-shot", "in context, no training", "standard fine-tuning", "prompt (automatic) + demonstrations",
    }  # fmt: skip
    page = (done / "report.md").read_text()
    assert "## LM-BFF: a few labelled examples" in page and "What prompts and demonstrations bring" in page
    assert "Fine-tuning on few examples" not in page and "| demonstrations bring | demo_sentiment |" in page


def test_a_report_of_the_study_has_the_same_table_also_where_it_has_moved(done, tmp_path):
    shutil.copytree(done, tmp_path / "moved", symlinks=True)
    (done / "cells" / "search-demo_sentiment-seed13").rename(tmp_path / "away")
    try:
        assert main(["report", f"runs=[{tmp_path / 'moved'}]", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    finally:
        (tmp_path / "away").rename(done / "cells" / "search-demo_sentiment-seed13")
    assert (tmp_path / "report" / "table.csv").read_text() == (done / "table.csv").read_text()


def test_a_study_goes_on_without_repeating(done, capsys):
    cell = done / "cells" / "demo_sentiment-auto_demos-seed13-batch4-lr0.001"
    before = {p: p.stat().st_mtime_ns for p in done.rglob("result.json") if cell not in p.parents and p.parent != done}
    table = (done / "table.csv").read_text()
    shutil.rmtree(cell)
    assert main(["sweeps", f"resume={done}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (done / "table.csv").read_text() == table and "cell 7/8 demo_sentiment-auto" in capsys.readouterr().out


def test_what_comes_after_a_failed_cell_is_not_run(tmp_path, monkeypatch):
    def run(cell: cells.Cell, place: Path, _: object) -> None:
        ran.append(cell.name)
        if cell.name == "a":
            raise UserError("out of luck")

    ran: list[str] = []
    monkeypatch.setattr(cells, "run_one", run)
    config = planned("study=lmbff_demo")
    named = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
    several = [cells.Cell(name, "finetune", (), config, after) for name, after in named.items()]
    failed: dict[str, str] = {}
    cells.run_all(several, tmp_path / "cells", config, failed, 0, 4, lambda _: None)
    assert ran == ["a", "d"]
    assert failed == {"a": "out of luck", "b": "not run, for want of a", "c": "not run, for want of b"}


@pytest.mark.slow
def test_without_its_search_a_row_is_not_run_and_the_others_are(done, monkeypatch, capsys):
    def failing(**more):
        if "tuned" in str(more["run"]):
            raise RuntimeError("out of luck")
        return fit(**more)

    fit, root = finetune.fit, done.parent
    words = [f"init={done / 'cells' / 'pretrain-transformer'}", "variants=[zeroshot,prompt,auto]", "grid.lr=[1e-3]"]
    with monkeypatch.context() as broken:
        broken.setattr(finetune, "fit", failing)
        assert main([*study(root, "failed"), *words]) == 1
    failed = result(root / "failed")["failed"]
    lost = "demo_sentiment-auto-seed13-batch4-lr0.001"
    assert failed[lost] == "not run, for want of search-demo_sentiment-seed13" and len(failed) == 2
    assert "prompt (manual)" in (root / "failed" / "report.md").read_text()
    assert main(["sweeps", f"resume={root / 'failed'}"]) == 0 and result(root / "failed" / "cells" / lost)
    assert "out of luck" in capsys.readouterr().err


def test_a_dry_run_counts_the_whole_grid_and_what_the_searches_tune(done):
    words = [f"init={done / 'cells' / 'pretrain-transformer'}", "variants=[auto]", "seeds=[1,2,3]", "dry_run=true"]
    assert main([*study(done.parent, "dry"), *words]) == 0
    found = result(done.parent / "dry")
    assert found["cells"] == 3 * (2 + 2)  # two are tuned, and a row has two points
    page = (done.parent / "dry" / "report.md").read_text()
    assert "| search-demo_sentiment | 6 |" in page and "| demo_sentiment-auto-seed1-batch4-lr0.001 | 6 |" in page


# --- the table --------------------------------------------------------------------------------------------------------


def few_run(
    folder: Path, task: str, test: float, valid: float = 0.5, loss: float = 1.0, answers="", **changes: Any
) -> Path:
    """A run on few examples, written by hand; answers: what it says to the four examples of the test split."""
    own = {
        "method": "head", "prompt": None, "demos": "none", "demo_sets": 16, "shots": 16, "batch_size": 8, "lr": 1e-5,
    }  # fmt: skip
    metric, labels = task_config(task)["metrics"][0], task_config(task)["labels"]
    lines = [(str(i), labels[i % 2], labels[int(one)]) for i, one in enumerate(answers)]
    scores = {"test": {metric: test}, "valid": {metric: valid, "loss": loss}}
    return write_run(folder, task, scores, {"test": lines} if lines else None, {"test": 872}, **{**own, **changes})


def laid(root: Path) -> tuple[list[lmbff_table.Line], list[dict[str, Any]], str]:
    lines, _ = lmbff_table.lines_of(find_runs([str(root)]))
    table, records = lmbff_table.table_of(lines)
    return lines, records, table.markdown()


def test_a_cell_is_the_mean_of_what_validation_chose_and_the_deviation_of_the_population(tmp_path):
    chosen = {13: 0.70, 21: 0.80, 42: 0.60}
    for seed, test in chosen.items():
        few_run(tmp_path / f"a{seed}", "sst2", test, valid=0.9, seed=seed, lr=1e-5)
        few_run(tmp_path / f"b{seed}", "sst2", 0.99, valid=0.8, seed=seed, lr=2e-5)
        few_run(tmp_path / f"c{seed}", "sst2", 0.98, valid=0.9, loss=1.5, seed=seed, batch_size=2)
        few_run(tmp_path / f"p{seed}", "sst2", test + 0.1, method="prompt", seed=seed)
    lines, records, page = laid(tmp_path)
    assert [line.row for line in lines] == ["head", "prompt"]
    percent = [100 * value for value in chosen.values()]
    assert (
        f"| standard fine-tuning | 70.0 ({np.std(percent):.1f}) |" in page
        and "| prompt (manual) | 80.0 (8.2) |" in page
    )
    assert "| prompt (manual): RoBERTa-large | 92.7 (0.9) |" in page and "standard fine-tuning: RoBERTa" not in page
    assert "context, not a target" in page and "of the population" in page
    first, second = records
    assert list(first) == FIELDS and first["median"] == pytest.approx(70) and first["seeds"] == 3
    assert first["sd"] == pytest.approx(statistics.pstdev(percent)) and first["paper"] is None
    assert (second["paper"], second["difference"]) == (92.7, None)


def test_columns_are_in_the_papers_order_and_others_behind(tmp_path):
    for method in ("head", "prompt"):
        for task in ("demo_sentiment", "rte", "cola"):
            few_run(tmp_path / f"{method}-{task}", task, 0.5, method=method)
    *_, page = laid(tmp_path)
    assert "|  | CoLA (mc) | RTE (acc) | demo_sentiment |" in page


def test_what_makes_a_row_and_what_does_not(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "environment.json").write_text('{"command": "search"}')
    searched = str(tmp_path / "search" / "best.yaml")

    def row(name: str, **changes: Any) -> str | None:
        few_run(tmp_path / name, "sst2", 0.5, **changes)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        return lmbff_table.row_of(Finished(tmp_path / name, config, result(tmp_path / name)))

    assert row("a") == "head" and row("b", method="prompt") == "prompt"
    assert row("c", method="prompt", demos="random") == "prompt_demos"
    assert row("d", method="prompt", prompt=searched) == "auto"
    assert row("e", method="prompt", prompt=searched, demos="similar") == "auto_demos"
    assert row("f", method="prompt", prompt=str(tmp_path / "mine.yaml")) is None
    assert row("g", shots=None) is None and row("h", pretrained=False) is None


def test_what_else_differs_makes_a_row_of_its_own(tmp_path):
    few_run(tmp_path / "a", "sst2", 0.5)
    few_run(tmp_path / "b", "sst2", 0.6, method="prompt", steps=10)
    few_run(tmp_path / "c", "sst2", 0.7, method="prompt", steps=20)
    lines, *_ = laid(tmp_path)
    assert [str(line) for line in lines] == [
        "standard fine-tuning", "prompt (manual), steps=10", "prompt (manual), steps=20"
    ]  # fmt: skip


def test_one_row_alone_is_no_table(tmp_path):
    few_run(tmp_path / "a", "sst2", 0.5)
    assert lmbff_table.lines_of(find_runs([str(tmp_path)])) == ([], set())


def test_what_prompts_bring_is_the_difference_to_the_head_for_the_same_seeds(tmp_path):
    said = {"head": {1: "0011" * 5, 2: "0101" * 5}, "prompt": {1: "0101" * 5, 2: "0111" * 5, 3: "0101" * 5}}
    for method, seeds in said.items():
        for seed, answers in seeds.items():
            right = np.mean([int(one) == i % 2 for i, one in enumerate(answers)])
            few_run(tmp_path / f"{method}{seed}", "sst2", right, method=method, seed=seed, answers=answers)
    lines, *_ = laid(tmp_path)
    worth = lmbff_table.worth(lines)
    labels = np.arange(20) % 2
    sides = [[np.array([int(one) for one in said[m][s]]) for s in (1, 2)] for m in ("prompt", "head")]
    found = bootstrap.compare("accuracy", labels, *sides)
    assert worth.rows == [
        [
            "prompts bring", "sst2", "prompt (manual) - standard fine-tuning", "test (20)", "accuracy", "1, 2",
            "87.5", "75.0", "+12.5", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}", f"{found.p:.4f}",
        ]
    ]  # fmt: skip


def test_zero_shot_stands_beside_every_seed(tmp_path):
    for name, seeds, shots in (("zero", [13], 0), ("a", [13], 2), ("b", [21], 2)):
        few_run(tmp_path / name, "sst2", 0.5, answers="0101", pool=16, seeds=seeds, shots=shots)
        told = {**result(tmp_path / name), "command": "fewshot"}
        told["shots"] = {str(shots): {"seeds": {str(seeds[0]): {"test": {"accuracy": 0.5}}}}}
        (tmp_path / name / "result.json").write_text(json.dumps(told))
    lines, *_ = laid(tmp_path)
    (row,) = lmbff_table.worth(lines).rows
    assert (
        row[:3] == ["demonstrations bring", "sst2", "in context, no training - prompt, zero-shot"]
        and row[5] == "13, 21"
    )


def test_the_papers_numbers_are_those_that_a_second_source_confirms():
    columns = [lmbff_table.Column(**column) for column in lmbff_table.published()["few"]["columns"]]
    known = {(c.task, row): list(numbers) for c in columns for row, numbers in c.paper.items()}
    assert known == {
        ("sst2", "zeroshot"): [83.6], ("rte", "zeroshot"): [51.3], ("mrpc", "zeroshot"): [61.9],
        ("qnli", "zeroshot"): [50.8], ("sst2", "prompt"): [92.7, 0.9], ("rte", "prompt"): [69.1, 3.6],
        ("mrpc", "prompt"): [74.5, 5.3], ("qnli", "prompt"): [64.5, 4.2],
    }  # fmt: skip
    assert list(lmbff_table.published()["few"]["rows"]) == list(few_shot.ROWS) and ablation.FAMILIES["few"] is few_shot
    with pytest.raises(UserError, match="no finished run"):
        find_runs(["/nowhere"])
