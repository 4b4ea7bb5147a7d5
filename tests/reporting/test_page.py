"""Report pages are self-contained: no script, no request, and untrusted text is never read as html."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import write_run
from worlds import read

from gpt1cli.cli.main import main
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.plots import log_x_axis
from gpt1cli.reporting.run_report import changed_settings, write_run_report

EVIL = "<b>&\"'|$x<script>alert(1)</script>"
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "table", "thead", "tbody", "tr", "th", "td",
    "ul", "li", "pre", "figure", "figcaption", "svg", "g", "path", "defs", "use", "text", "rect", "clippath",
}  # fmt: skip


class Page(HTMLParser):
    """A page as a browser reads it: its elements, their references, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.policy, self.words, self.open = "", "", []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
            self.ids += [value or ""] if name == "id" else []
            self.policy = (
                value or "" if (name, self.policy) == ("content", "") and "default-src" in value else self.policy
            )

    def handle_data(self, data: str) -> None:
        self.words += data


def check_page(path: Path) -> Page:
    page = Page(path)
    assert page.elements <= ELEMENTS
    assert page.policy.startswith("default-src 'none';")
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert not re.search(r"https?:|@import|data:", path.read_text())
    return page


def write_reported_run(folder: Path, task: str, predictions: list, scores: dict) -> Path:
    lines = [{"step": step, "split": "train", "loss": 2 / step, "task_loss": 1 / step} for step in (1, 2, 3)]
    lines += [{"step": 3, "split": "valid", "loss": 0.5, **scores}]
    run = write_run(folder, task, {"valid": scores}, {"valid": predictions}, name=EVIL)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "environment.json").write_text(json.dumps({"command_line": ["finetune", f"task={task}", f"name={EVIL}"]}))
    result = json.loads((run / "result.json").read_text()) | {"name": EVIL, "valid": scores}
    write_run_report(run, result)
    return run


def test_wide_table_is_split_and_each_part_has_the_first_column():
    rows = [["one two", "1", "2", "3"], ["three", "4", "5", "6"]]
    table = ReportTable("t", ["row", "a longword", "b", "unbreakable" * 5], rows)
    # width with a frame of 3: "three" 5 + 3, "longword" 8 + 3, "b" 1 + 3, the last word at most 20 + 3; 1 for the end
    assert table.split_columns(8 + 11 + 4 + 23 + 1) == [[0, 1, 2, 3]]
    assert table.split_columns(8 + 11 + 4 + 23) == [[0, 1, 2], [0, 3]]
    assert table.split_columns(20) == [[0, 1], [0, 2], [0, 3]]
    assert table.split_columns(1) == [[0, 1], [0, 2], [0, 3]]


def test_page_of_a_classification_run(tmp_path):
    lines = [
        ("0", "acceptable", "acceptable"),
        ("1", "acceptable", "unacceptable"),
        ("2", "unacceptable", "acceptable"),
    ]
    run = write_reported_run(tmp_path / "run", "cola", lines, {"matthews_correlation": 0.125})
    page = check_page(run / "report.html")
    assert "svg" in page.elements and EVIL in page.words and "<b>" not in (run / "report.html").read_text()
    assert all(
        "<b>" not in line for line in (run / "report.md").read_text().splitlines() if not line.startswith("    ")
    )
    assert {path.name for path in (run / "plots").iterdir()} == {"loss.png", "metric.png", "confusion-valid.png"}
    matrix = (run / "report.html").read_text().split("confusion-valid-", 1)[1]
    assert re.findall(r">(\d)</text>", matrix) == ["0", "1", "1", "1"]  # rows: unacceptable, acceptable
    assert "gpt1 finetune task=cola" in (run / "report.md").read_text()


def test_page_of_a_regression_run(tmp_path):
    run = write_reported_run(tmp_path / "run", "stsb", [("0", 1.0, 2.0), ("1", 4.0, 3.5)], {"pearson": 1.0})
    check_page(run / "report.html")
    assert (run / "plots/scatter-valid.png").exists()


def test_job_of_a_sweep_is_repeated_with_config(tmp_path):
    run = write_run(tmp_path / "run", "cola", {"valid": {"matthews_correlation": 0.1}})
    (run / "environment.json").write_text(json.dumps({"command_line": ["-m", "finetune", "task=cola,rte"]}))
    write_run_report(run, json.loads((run / "result.json").read_text()))
    assert f"gpt1 finetune config={run / 'config.yaml'}\n" in (run / "report.md").read_text()


def test_settings_that_differ_from_the_default_are_reported(tmp_path):
    model = read("model/mini.yaml") | {"n_layer": 3}
    run = write_run(tmp_path / "run", "cola", {}, lr=0.1, aux_lm=False, model=model)
    settings = set(changed_settings("finetune", yaml.safe_load((run / "config.yaml").read_text())))
    assert settings == {
        ("model", "mini", "base"), ("model.n_layer", 3, 4), ("lr", 0.1, model["finetuning"]["lr"]),
        ("aux_lm", False, True), ("task", "cola", None),
    }  # fmt: skip
    same = write_run(tmp_path / "same", "cola", {}, lr=read("model/base.yaml")["finetuning"]["lr"])
    settings = set(changed_settings("finetune", yaml.safe_load((same / "config.yaml").read_text())))
    assert settings == {("task", "cola", None)}


def test_page_of_many_runs_escapes_their_text(tmp_path):
    model = read("model/base.yaml")
    for seed, (name, score) in enumerate(((EVIL, 0.5), ("other", 0.25), (EVIL, 0.75))):
        changes = {"model": model | {"name": name}, "seed": seed, "aux_lm": name == EVIL}
        scores = {"valid": {"matthews_correlation": score}}
        write_run(tmp_path / f"runs/{seed} <i>&", "cola", scores, **changes)
        write_run(tmp_path / f"runs/{seed}/snli", "snli", {"test": {"accuracy": score}}, **{**changes, "aux_lm": False})
    assert main(["report", f"runs=[{tmp_path / 'runs'}]", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    page = check_page(tmp_path / "report/report.html")
    assert EVIL in page.words and "0 <i>&" in page.words
    text = (tmp_path / "report/report.html").read_text() + (tmp_path / "report/report.md").read_text()
    assert "<script" not in text and "<i>" not in text and "<b>" not in text


@pytest.mark.parametrize(
    ("cell", "markdown"), [("a|b", "a\\|b"), ("a\nb", "a b"), ("<b>&", "&lt;b&gt;&amp;"), ("± 1", "± 1")]
)
def test_cells_are_escaped_in_markdown(cell, markdown):
    assert f"| {markdown} |" in ReportTable("title", ["head"], [[cell]]).markdown().splitlines()


@pytest.mark.parametrize("steps", [(50, 100, 200), (100, 300, 1000, 5000), (1, 10_000)])
def test_ticks_of_steps_are_plain_numbers(steps):
    figure = Figure()
    axes = figure.subplots()
    axes.plot(steps, steps)
    log_x_axis(axes)
    FigureCanvasAgg(figure).draw()
    ticks = [*axes.xaxis.get_ticklabels(which="major"), *axes.xaxis.get_ticklabels(which="minor")]
    labels = [tick.get_text() for tick in ticks if tick.get_text()]
    assert len(labels) >= 2 and all(text.replace(",", "").isdecimal() for text in labels)
