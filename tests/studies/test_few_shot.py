"""Few-shot studies: their cells, the run of a grid that validation chooses, and their table."""

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
from runs import compose_sweeps, task_config, write_run
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.commands import ablation, finetune
from gpt1cli.config.schema import UserError
from gpt1cli.reporting import bootstrap, lmbff_table, paper_tables
from gpt1cli.reporting.collect import FinishedRun, find_runs
from gpt1cli.reporting.paper_tables import FIELDS
from gpt1cli.runs import files, record
from gpt1cli.studies import cells, few_shot

pytestmark = pytest.mark.usefixtures("no_pictures")

# --- cells ------------------------------------------------------------------------------------------------------------


def compose_cells(*words: str) -> dict[str, Any]:
    return {cell.name: cell for stage in few_shot.stages(compose_sweeps(*words)) for cell in stage(None)}


def test_the_study_has_seven_rows_per_task_five_seeds_and_a_grid():
    config = compose_sweeps("study=lmbff", "tasks=[snli,stsb]")  # two of nine, to save time
    assert config.study.tasks == ["sst2", "cola", "mnli", "snli", "qnli", "rte", "mrpc", "qqp", "stsb"]
    assert config.seeds == [13, 21, 42, 87, 100] and len(few_shot.grid_points(config)) == 9
    searches, rows = (stage(None) for stage in few_shot.stages(config)[1:])
    assert len(searches) == 2 * 5 and len(rows) == len({cell.name for cell in rows}) == 2 * (1 + 5 + 5 * 5 * 9)
    by_name = {cell.name: cell for cell in [*searches, *rows]}
    search = by_name["search-stsb-seed21"].config
    assert (search.what, search.shots, search.seed, search.tune) == ("templates", 16, 21, 100)
    assert {"batch_size=8", "lr=1e-05"} <= set(search.cells)  # LM-BFF's settings for tuning candidates
    cell = by_name["snli-auto_demos-seed42-batch2-lr2e-05"]
    assert cell.depends_on == ("search-snli-seed42",) and cell.group == "snli-auto_demos-seed42"
    config = cell.config
    assert (config.method, config.demos, config.demo_sets, config.shots, config.seed) == (
        "prompt",
        "similar",
        4,
        16,
        42,
    )
    assert (config.batch_size, config.lr, config.steps, config.eval_every, config.aux_lm) == (2, 2e-5, 1000, 100, False)
    head = by_name["stsb-head-seed100-batch8-lr5e-05"].config
    assert (head.method, head.demos, head.task.loss, head.demo_sets) == ("head", "none", "mse", 16)
    assert by_name["stsb-prompt-seed100-batch8-lr5e-05"].config.task.loss == "interpolation"
    in_context = by_name["stsb-incontext-seed87"].config
    assert (in_context.shots, in_context.pool, in_context.seeds, in_context.balanced) == (32, 16, [87], False)
    assert by_name["stsb-zeroshot"].config.shots == 0 and "stsb-zeroshot-seed21" not in by_name


def test_a_study_can_be_restricted():
    words = ["study=lmbff", "tasks=[snli]", "variants=[incontext,prompt_demos]", "seeds=[5]", "shots=4", "steps=30"]
    cells = compose_cells(*words, "grid.batch_size=[4]", "grid.lr=[1e-3,2e-3]", "demos=random", "demo_sets=2")
    names = ["snli-incontext-seed5", "snli-prompt_demos-seed5-batch4-lr0.001", "snli-prompt_demos-seed5-batch4-lr0.002"]
    assert list(cells) == names
    assert (cells[names[0]].config.shots, cells[names[0]].config.pool) == (12, 4)  # all examples of the training split
    config = cells[names[1]].config
    assert (config.shots, config.steps, config.demos, config.demo_sets) == (4, 30, "random", 2)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["study=lmbff", "variants=[prompts]"], "prompts: no such row of study=lmbff; did you mean prompt?"),
        (["study=lmbff", "lr=1e-3"], "study=lmbff: lr=: the grid sets it; use grid.lr=[...]"),
        (
            ["study=lmbff", "demos=none"],
            "demos=none: the rows set it; choose rows without demonstrations with variants=[...]",
        ),
        (["study=lmbff", "method=head"], "method=: the rows set it; choose rows with variants=[...]"),
        (["study=lmbff", "ablation=full"], "ablation=full: the rows of study=lmbff are methods: use variants=[...]"),
        (["study=lmbff", "grid.lr=[]"], "grid.lr=[]: needs at least one value"),
        (["study=lmbff", "grid.lr=[-1]"], "grid.lr[0]=-1 is refused: it must be above 0"),
        (["study=table5", "grid.lr=[1]"], "grid is only for few-shot studies, as study=lmbff; study=table5 has none"),
        (["study=lmbff_demo", "model=mini"], "model=mini: study=lmbff_demo pretrains the models of its cells"),
    ],
)
def test_mistakes_stop_a_study_before_it_starts(tmp_path, capsys, words, fragment):
    assert main(["sweeps", f"out={tmp_path / 'out'}", f"hub={tmp_path}", *words]) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- running ----------------------------------------------------------------------------------------------------------

VARIANTS = "variants=[zeroshot,incontext,head,auto_demos]"


def study(root: Path, run: str, *more: str) -> list[str]:
    """A study of one task with three examples per class, two grid points and its own pretraining."""
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


def test_all_rows_train_and_test_on_the_same_examples(done):
    home = done / "cells"
    names = ["head", "auto_demos"]
    trained = [home / f"demo_sentiment-{name}-seed13-batch4-lr{lr}" for name in names for lr in ("0.001", "0.01")]
    untrained = [home / "demo_sentiment-zeroshot", home / "demo_sentiment-incontext-seed13"]
    search = home / "search-demo_sentiment-seed13"
    assert {path.name for path in home.iterdir()} == {"pretrain-transformer"} | {
        p.name for p in [*trained, *untrained, search]
    }
    checksums = [record.read_environment(path)["checksums"] for path in trained]
    assert len({one["train"] for one in checksums}) == len({one["valid"] for one in checksums}) == 1
    assert record.read_environment(search)["checksums"]["train"] == checksums[0]["train"]
    ids = [[line["id"] for line in files.read_jsonl(p / "predictions" / "test.jsonl")] for p in [*trained, *untrained]]
    assert all(one == ids[0] for one in ids) and len(ids[0]) == 8
    assert all(
        files.read_config(path / "config.yaml")["init"] == str(home / "pretrain-transformer") for path in trained
    )
    auto = files.read_config(trained[-1] / "config.yaml")
    best = files.read_config(search / "best.yaml")
    assert auto["prompt"] == str(search / "best.yaml") and auto["task"]["prompt"]["words"] == best["words"]
    assert result(untrained[1])["shots"].keys() == {"6"}
    assert result(done)["cells"] == 8 and result(done)["failed"] == {}


def test_the_run_chosen_by_validation_is_reported_and_keeps_its_weights(done):
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
    assert "## LM-BFF: a few labelled examples" in page and "Gains from prompts and demonstrations" in page
    assert "Fine-tuning on few examples" not in page and "| gain from demonstrations | demo_sentiment |" in page


def test_a_moved_study_gives_the_same_report(done, tmp_path):
    shutil.copytree(done, tmp_path / "moved", symlinks=True)
    (done / "cells" / "search-demo_sentiment-seed13").rename(tmp_path / "away")
    try:
        assert main(["report", f"runs=[{tmp_path / 'moved'}]", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    finally:
        (tmp_path / "away").rename(done / "cells" / "search-demo_sentiment-seed13")
    assert (tmp_path / "report" / "table.csv").read_text() == (done / "table.csv").read_text()


def test_a_resumed_study_repeats_no_finished_cell(done, capsys):
    cell = done / "cells" / "demo_sentiment-auto_demos-seed13-batch4-lr0.001"
    before = {p: p.stat().st_mtime_ns for p in done.rglob("result.json") if cell not in p.parents and p.parent != done}
    table = (done / "table.csv").read_text()
    shutil.rmtree(cell)
    assert main(["sweeps", f"resume={done}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (done / "table.csv").read_text() == table and "cell 7/8 demo_sentiment-auto" in capsys.readouterr().out


def test_cells_that_depend_on_a_failed_cell_are_not_run(tmp_path, monkeypatch):
    def run(cell: cells.Cell, place: Path, _: object) -> None:
        ran.append(cell.name)
        if cell.name == "a":
            raise UserError("out of luck")

    ran: list[str] = []
    monkeypatch.setattr(cells, "run_cell", run)
    config = compose_sweeps("study=lmbff_demo")
    dependencies = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
    study_cells = [cells.Cell(name, "finetune", (), config, depends_on) for name, depends_on in dependencies.items()]
    failed: dict[str, str] = {}
    cells.run_cells(study_cells, tmp_path / "cells", config, failed, 0, 4, lambda _: None)
    assert ran == ["a", "d"]
    assert failed == {"a": "out of luck", "b": "not run, because a failed", "c": "not run, because b failed"}


@pytest.mark.slow
def test_a_failed_search_skips_only_its_row(done, monkeypatch, capsys):
    def failing_fit(**more):
        if "tuned" in str(more["run"]):
            raise RuntimeError("out of luck")
        return fit(**more)

    fit, root = finetune.fit, done.parent
    words = [f"init={done / 'cells' / 'pretrain-transformer'}", "variants=[zeroshot,prompt,auto]", "grid.lr=[1e-3]"]
    with monkeypatch.context() as broken:
        broken.setattr(finetune, "fit", failing_fit)
        assert main([*study(root, "failed"), *words]) == 1
    failed = result(root / "failed")["failed"]
    skipped = "demo_sentiment-auto-seed13-batch4-lr0.001"
    assert failed[skipped] == "not run, because search-demo_sentiment-seed13 failed" and len(failed) == 2
    assert "prompt (manual)" in (root / "failed" / "report.md").read_text()
    assert main(["sweeps", f"resume={root / 'failed'}"]) == 0 and result(root / "failed" / "cells" / skipped)
    assert "out of luck" in capsys.readouterr().err


def test_a_dry_run_counts_the_grid_and_the_tuned_candidates(done):
    words = [f"init={done / 'cells' / 'pretrain-transformer'}", "variants=[auto]", "seeds=[1,2,3]", "dry_run=true"]
    assert main([*study(done.parent, "dry"), *words]) == 0
    summary = result(done.parent / "dry")
    assert summary["cells"] == 3 * (2 + 2)  # a search tunes two, and a row has two grid points
    page = (done.parent / "dry" / "report.md").read_text()
    assert "| search-demo_sentiment | 6 |" in page and "| demo_sentiment-auto-seed1-batch4-lr0.001 | 6 |" in page


# --- the table --------------------------------------------------------------------------------------------------------


def few_run(
    folder: Path, task: str, test: float, valid: float = 0.5, loss: float = 1.0, answers="", **changes: Any
) -> Path:
    """Write a few-shot run by hand; answers: its predictions for the examples of the test split."""
    own = {
        "method": "head", "prompt": None, "demos": "none", "demo_sets": 16, "shots": 16, "batch_size": 8, "lr": 1e-5,
    }  # fmt: skip
    metric, labels = task_config(task)["metrics"][0], task_config(task)["labels"]
    lines = [(str(i), labels[i % 2], labels[int(one)]) for i, one in enumerate(answers)]
    scores = {"test": {metric: test}, "valid": {metric: valid, "loss": loss}}
    return write_run(folder, task, scores, {"test": lines} if lines else None, {"test": 872}, **{**own, **changes})


def build_table(root: Path) -> tuple[list[lmbff_table.FewShotRow], list[dict[str, Any]], str]:
    lines, _ = lmbff_table.few_shot_rows(find_runs([str(root)]))
    table, records = lmbff_table.format_few_shot_table(lines)
    return lines, records, table.markdown()


def test_table_cells_have_mean_and_population_deviation_of_the_chosen_runs(tmp_path):
    chosen = {13: 0.70, 21: 0.80, 42: 0.60}
    for seed, test in chosen.items():
        few_run(tmp_path / f"a{seed}", "sst2", test, valid=0.9, seed=seed, lr=1e-5)
        few_run(tmp_path / f"b{seed}", "sst2", 0.99, valid=0.8, seed=seed, lr=2e-5)
        few_run(tmp_path / f"c{seed}", "sst2", 0.98, valid=0.9, loss=1.5, seed=seed, batch_size=2)
        few_run(tmp_path / f"p{seed}", "sst2", test + 0.1, method="prompt", seed=seed)
    lines, records, page = build_table(tmp_path)
    assert [line.row for line in lines] == ["head", "prompt"]
    percent = [100 * value for value in chosen.values()]
    assert (
        f"| standard fine-tuning | 70.0 ({np.std(percent):.1f}) |" in page
        and "| prompt (manual) | 80.0 (8.2) |" in page
    )
    assert "| prompt (manual): RoBERTa-large | 92.7 (0.9) |" in page and "standard fine-tuning: RoBERTa" not in page
    assert "only for context" in page and "population standard deviation" in page
    first, second = records
    assert list(first) == FIELDS and first["median"] == pytest.approx(70) and first["seeds"] == 3
    assert first["sd"] == pytest.approx(statistics.pstdev(percent)) and first["paper"] is None
    assert (second["paper"], second["difference"]) == (92.7, None)


def test_columns_follow_the_paper_and_other_tasks_come_last(tmp_path):
    for method in ("head", "prompt"):
        for task in ("demo_sentiment", "rte", "cola"):
            few_run(tmp_path / f"{method}-{task}", task, 0.5, method=method)
    *_, page = build_table(tmp_path)
    assert "|  | CoLA (mc) | RTE (acc) | demo_sentiment |" in page


def test_rows_are_named_by_their_settings(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "environment.json").write_text('{"command": "search"}')
    searched = str(tmp_path / "search" / "best.yaml")

    def row(name: str, **changes: Any) -> str | None:
        few_run(tmp_path / name, "sst2", 0.5, **changes)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        return lmbff_table.row_name(FinishedRun(tmp_path / name, config, result(tmp_path / name)))

    assert row("a") == "head" and row("b", method="prompt") == "prompt"
    assert row("c", method="prompt", demos="random") == "prompt_demos"
    assert row("d", method="prompt", prompt=searched) == "auto"
    assert row("e", method="prompt", prompt=searched, demos="similar") == "auto_demos"
    assert row("f", method="prompt", prompt=str(tmp_path / "mine.yaml")) is None
    assert row("g", shots=None) is None and row("h", pretrained=False) is None


def test_other_differing_settings_make_a_separate_row(tmp_path):
    few_run(tmp_path / "a", "sst2", 0.5)
    few_run(tmp_path / "b", "sst2", 0.6, method="prompt", steps=10)
    few_run(tmp_path / "c", "sst2", 0.7, method="prompt", steps=20)
    lines, *_ = build_table(tmp_path)
    assert [str(line) for line in lines] == [
        "standard fine-tuning", "prompt (manual), steps=10", "prompt (manual), steps=20"
    ]  # fmt: skip


def test_a_single_row_gives_no_table(tmp_path):
    few_run(tmp_path / "a", "sst2", 0.5)
    assert lmbff_table.few_shot_rows(find_runs([str(tmp_path)])) == ([], set())


def test_the_gain_of_prompts_is_the_difference_to_the_head_for_the_same_seeds(tmp_path):
    predictions = {"head": {1: "0011" * 5, 2: "0101" * 5}, "prompt": {1: "0101" * 5, 2: "0111" * 5, 3: "0101" * 5}}
    for method, seeds in predictions.items():
        for seed, answers in seeds.items():
            accuracy = np.mean([int(one) == i % 2 for i, one in enumerate(answers)])
            few_run(tmp_path / f"{method}{seed}", "sst2", accuracy, method=method, seed=seed, answers=answers)
    lines, *_ = build_table(tmp_path)
    gains = lmbff_table.compare_rows(lines)
    labels = np.arange(20) % 2
    sides = [[np.array([int(one) for one in predictions[m][s]]) for s in (1, 2)] for m in ("prompt", "head")]
    gap = bootstrap.compare("accuracy", labels, *sides)
    assert gains.rows == [
        [
            "gain from prompts", "sst2", "prompt (manual) - standard fine-tuning", "test (20)", "accuracy", "1, 2",
            "87.5", "75.0", "+12.5", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}", f"{gap.p:.4f}",
        ]
    ]  # fmt: skip


def test_zero_shot_is_compared_with_every_seed(tmp_path):
    for name, seeds, shots in (("zero", [13], 0), ("a", [13], 2), ("b", [21], 2)):
        few_run(tmp_path / name, "sst2", 0.5, answers="0101", pool=16, seeds=seeds, shots=shots)
        stored = {**result(tmp_path / name), "command": "fewshot"}
        stored["shots"] = {str(shots): {"seeds": {str(seeds[0]): {"test": {"accuracy": 0.5}}}}}
        (tmp_path / name / "result.json").write_text(json.dumps(stored))
    lines, *_ = build_table(tmp_path)
    (row,) = lmbff_table.compare_rows(lines).rows
    assert (
        row[:3] == ["gain from demonstrations", "sst2", "in context, no training - prompt, zero-shot"]
        and row[5] == "13, 21"
    )


def test_published_numbers_match_a_second_source():
    columns = [lmbff_table.FewShotColumn(**column) for column in paper_tables.published_numbers()["few"]["columns"]]
    known = {(c.task, row): list(numbers) for c in columns for row, numbers in c.paper.items()}
    assert known == {
        ("sst2", "zeroshot"): [83.6], ("rte", "zeroshot"): [51.3], ("mrpc", "zeroshot"): [61.9],
        ("qnli", "zeroshot"): [50.8], ("sst2", "prompt"): [92.7, 0.9], ("rte", "prompt"): [69.1, 3.6],
        ("mrpc", "prompt"): [74.5, 5.3], ("qnli", "prompt"): [64.5, 4.2],
    }  # fmt: skip
    assert (
        list(paper_tables.published_numbers()["few"]["rows"]) == list(few_shot.ROWS)
        and ablation.STUDY_KINDS["few"] is few_shot
    )
    with pytest.raises(UserError, match="no finished run"):
        find_runs(["/nowhere"])
