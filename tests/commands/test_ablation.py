"""Studies: their cells, runs, failures and interruptions; sweeps that resume."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import compose_sweeps
from worlds import SMALL, STORY, data_set

from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.main import main
from gpt1cli.cli.resolve import compose
from gpt1cli.commands import finetune
from gpt1cli.config.schema import UserError
from gpt1cli.reporting import figure2
from gpt1cli.runs import files, record
from gpt1cli.runs import folder as runs_folder
from gpt1cli.studies import transfer

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with pretraining runs of both architectures under out/."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    for architecture in transfer.ARCHITECTURES:
        words = ["corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30", "steps=2"]
        run = f"hydra.run.dir={root / 'out' / 'pretrain' / 'story' / architecture}"
        words += [f"cache={root / 'cache'}", f"model.architecture={architecture}", run]
        assert main(["pretrain", *SMALL, *words]) == 0
    return root


def study(root: Path, run: str | None, *more: str) -> list[str]:
    """A study of two small cells, one task with two variants."""
    folder = [f"hydra.run.dir={root / run}"] if run else []
    return [
        "sweeps", f"out={root / 'out'}", f"cache={root / 'cache'}", f"init={root / 'out/pretrain/story/transformer'}",
        "tasks=[demo_sentiment]", "variants=[full,lstm]", "seeds=[0]", "limit.train=8", "limit.valid=6", "limit.test=6",
        "batch_size=4", "steps=2", "runtime.threads=1", "runtime.progress=none", *folder, *more,
    ]  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# --- cells ------------------------------------------------------------------------------------------------------------


def test_table5_is_four_variants_of_eight_tasks_with_three_seeds(tmp_path):
    cells = transfer.finetuning_cells(compose_sweeps(f"out={tmp_path}"), None)
    assert len(cells) == len({cell.name for cell in cells}) == 4 * 8 * 3
    assert [cell.config.seed for cell in cells] == [0] * 32 + [1] * 32 + [
        2
    ] * 32  # all cells of a seed before the next seed
    by_name = {cell.name: cell.config for cell in cells}
    assert by_name["rte-no_pretrain-seed1"].pretrained is False and by_name["rte-no_pretrain-seed1"].aux_lm
    assert by_name["cola-no_aux_lm-seed0"].aux_lm is False and by_name["cola-no_aux_lm-seed0"].pretrained
    lstm = by_name["stsb-lstm-seed2"]
    assert (lstm.model.architecture, lstm.model.lstm_units, lstm.pretrained) == ("lstm", 2048, False)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["tasks=[rte]", "variants=[lstm,full]", "seeds=[4]"], ["rte-lstm-seed4", "rte-full-seed4"]),
        (["tasks=[rte]", "ablation=no_pretrain", "seeds=[0]"], ["rte-no_pretrain-seed0"]),
        (["study=table3", "seeds=[0]"], ["story_cloze-full-seed0", "race-full-seed0"]),
        (
            ["study=figure2_left", "tasks=[snli]", "seeds=[0]"],
            ["snli-full-seed0", *(f"snli-layers{k}-seed0" for k in range(12))],
        ),
    ],
)
def test_any_study_can_be_restricted(words, names):
    assert [cell.name for cell in transfer.finetuning_cells(compose_sweeps(*words), None)] == names


def test_transferred_layers_are_counted_and_the_training_split_is_scored():
    cells = transfer.finetuning_cells(compose_sweeps("study=figure2_left", "tasks=[mnli]", "seeds=[0]"), None)
    assert [cell.config.transfer_layers for cell in cells] == ["all", *range(12)]
    assert all(cell.config.score_train for cell in cells)


def test_given_runs_replace_the_pretraining_of_a_study(world):
    runs = [f"{key}={world / 'out/pretrain/story' / name}" for name, key in transfer.INIT_KEYS.items()]
    config = compose_sweeps("study=demo", *runs, "seeds=[0]")
    assert (
        transfer.pretraining_cells(config) == [] and len(transfer.pretraining_cells(compose_sweeps("study=demo"))) == 2
    )
    cells = {cell.name: cell.config for cell in transfer.finetuning_cells(config, None)}
    assert Path(cells["demo_entailment-full-seed0"].init).name == "transformer"
    assert Path(cells["demo_entailment-lstm-seed0"].init).name == "lstm"
    probing = transfer.zero_shot_cells(config, None)[0].config
    assert [Path(run).name for run in probing.runs] == ["transformer", "lstm"] and probing.checkpoint == "all"


def test_finetuning_settings_reach_every_cell(tmp_path, capsys):
    (tmp_path / "words").mkdir()
    assert main(["sweeps", "tasks=[rte]", "lr=1e-3", "limit.train=5", "--cfg", "job"]) == 0
    assert "cells:\n- lr=1e-3\n- limit.train=5\n" in capsys.readouterr().out
    cells = transfer.finetuning_cells(
        compose_sweeps("tasks=[rte]", "cells=['lr=1e-3','limit.train=5','steps=7']"), None
    )
    assert {(cell.config.lr, cell.config.limit.train, cell.config.steps, cell.config.epochs) for cell in cells} == {
        (1e-3, 5, 7, None)
    }


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["task=rte"], "use tasks=[...] instead of task="),
        (["tasks=[rtf]"], "cell rtf-full: task=rtf: no such task; did you mean rte?"),
        (["tasks=[my.csv]"], "task=my.csv: no such task; for your own file use task=file task.train=my.csv"),
        (["variants=[ful]"], "cell cola-ful: ablation=ful: no such ablation; did you mean full?"),
        (["ablation=lstm", "variants=[full]"], "ablation=lstm and variants=['full']: use only one"),
        (["seeds=[]"], "seeds=[]: needs at least one seed"),
        (["seed=3"], "seed=3: gpt1 ablation takes seeds=[3]"),
        (["lr=-1"], "lr=-1 is refused: it must be above 0"),
        (["stepz=3"], "stepz: no such key"),
        (["study=figure2_left", "variants=[lstm]"], "study=figure2_left has no cell of lstm"),
        (["--config-name", "mine"], "a study runs several commands: remove --config-name"),
        (
            ["study=demo", "model=mini"],
            "model=mini: study=demo pretrains the models of its cells: put this word in study.pretraining=",
        ),
        (["study=demo", "init_lstm=run"], "study=demo pretrains both models of its cells: add init=RUN"),
        (["limit.trian=3"], "limit.trian: no such key; did you mean limit.train?"),
        (["config_dir=mine"], "config_dir=mine: use --config-dir mine"),
        (
            ["-m", "ablation=full,lstm", "lr=1e-3,1e-4"],
            "with -m a study accepts several values of ablation= or study= only",
        ),
        (["plan.devices=8"], "plan.devices=8: this estimates one run"),
        (["-m", "ablation=full,ful"], "ablation=ful: no such ablation"),
        (["tasks=[winograd]"], "cell winograd-full: task=winograd cannot be fine-tuned: it needs train and valid"),
    ],
)
def test_mistakes_end_the_study_before_it_starts(tmp_path, capsys, words, fragment):
    assert main(["sweeps", f"out={tmp_path / 'out'}", f"hub={tmp_path}", *words]) == 2
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_data_are_reported_before_the_first_cell(tmp_path, capsys):
    assert main(["sweeps", f"out={tmp_path / 'out'}", f"hub={tmp_path}", "tasks=[cola,qnli]"]) == 2
    message = capsys.readouterr().err
    assert "subset cola" in message and "subset qnli" in message and "gpt1 sweeps study=demo" in message


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(world) -> Path:
    assert main(study(world, "done", "seeds=[0,1]")) == 0
    return world / "done"


def test_each_cell_is_an_ordinary_run_with_its_best_weights(done, world):
    names = [f"demo_sentiment-{variant}-seed{seed}" for seed in (0, 1) for variant in ("full", "lstm")]
    assert sorted(path.name for path in (done / "cells").iterdir()) == sorted(names)
    for name in names:
        cell = done / "cells" / name
        assert {"config.yaml", "environment.json", "metrics.jsonl", "report.md", "predictions"} <= set(os.listdir(cell))
        assert result(cell)["command"] == "finetune" and result(cell)["steps"] == 2
        (step,) = {path.resolve().name for path in (cell / "checkpoints").iterdir()}
        remaining = set(os.listdir(cell / "checkpoints" / step))
        assert "model.safetensors" in remaining and "training.safetensors" not in remaining
    lstm = files.read_config(done / "cells" / "demo_sentiment-lstm-seed1" / "config.yaml")
    assert lstm["init"] == str(world / "out/pretrain/story/lstm") and lstm["pretrained"] and lstm["seed"] == 1
    assert result(done)["cells"] == 4 and result(done)["failed"] == {}
    assert "demo_sentiment" in (done / "report.md").read_text()


def test_a_cell_equals_finetune_with_the_same_overrides(done, world):
    words = study(world, "alone")[1:]
    words = [word for word in words if not word.startswith(("tasks", "variants", "seeds", "init="))]
    start = f"init={world / 'out/pretrain/story/transformer'}"
    assert main(["finetune", "task=demo_sentiment", start, "seed=1", *words]) == 0
    same = ("steps", "best_step", "valid", "test", "examples")
    cell, alone = result(done / "cells" / "demo_sentiment-full-seed1"), result(world / "alone")
    assert [cell[key] for key in same] == [alone[key] for key in same]


def test_a_finished_study_repeats_no_cell(done, capsys):
    before = {path: path.stat().st_mtime_ns for path in (done / "cells").rglob("*.*")}
    assert main(["sweeps", f"resume={done}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (done / "cells").rglob("*.*")} == before
    assert "cell 1/4" not in capsys.readouterr().out


def test_resuming_with_other_settings_is_refused_with_the_differences(done, capsys):
    assert main(["sweeps", f"resume={done}", "seeds=[0,1,2]", "lr=0.5"]) == 2
    message = capsys.readouterr().err
    assert "seeds=[0, 1, 2]: the run has [0, 1]" in message and "cells=['lr=0.5']: the run has" in message


def test_config_repeats_a_study_with_overrides(done, world):
    composer = Composer("ablation")
    words = [f"config={done / 'config.yaml'}", "lr=0.5"]
    cells = compose(composer, composer.check_overrides(words)).config.cells
    assert cells[-1] == "lr=0.5" and "limit.train=8" in cells and any(word.startswith("init=") for word in cells)


def test_a_cell_that_kept_only_its_best_weights_cannot_be_trained_further(done, capsys):
    cell = done / "cells" / "demo_sentiment-full-seed0"
    before = {path: path.read_bytes() for path in cell.rglob("*.json*")}
    assert main(["finetune", f"resume={cell}", "steps=9"]) == 2
    assert "only the best weights were kept" in capsys.readouterr().err
    assert (cell / "result.json").read_bytes() == before[cell / "result.json"]
    assert (cell / "metrics.jsonl").read_bytes() == before[cell / "metrics.jsonl"]


def test_a_cell_of_another_configuration_is_refused_with_the_differences(world, capsys):
    assert main(study(world, "changed", "variants=[full]")) == 0
    path = world / "changed" / "cells" / "demo_sentiment-full-seed0" / "config.yaml"
    path.write_text(path.read_text().replace("lm_coef: 0.5", "lm_coef: 0.25"))
    capsys.readouterr()
    assert main(["sweeps", f"resume={world / 'changed'}"]) == 2
    assert "lm_coef=0.25, now 0.5" in capsys.readouterr().err


def test_leftovers_of_a_killed_process_do_not_stop_a_cell(world):
    cell = world / "torn" / "cells" / "demo_sentiment-full-seed0"
    cell.mkdir(parents=True)
    (cell / ".config.yaml-1").write_text("half")
    cells = world / "torn" / "cells"
    with runs_folder.create_folder(cell):
        assert sorted(os.listdir(cell)) == [".lock"] and cells.exists()


def test_an_interrupted_study_resumes_its_cell_and_starts_the_later_ones(world, monkeypatch, capsys):
    saved, calls = finetune.checkpoint.save, []

    def interrupting(*arguments, **more):
        saved(*arguments, **more)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune.checkpoint, "save", interrupting)
    assert main(study(world, "stopped", "steps=6")) == 130
    assert not (world / "stopped" / "result.json").exists()
    assert f"to continue: gpt1 ablation resume={world / 'stopped'}" in capsys.readouterr().err
    assert main(["sweeps", f"resume={world / 'stopped'}"]) == 0
    cells = world / "stopped" / "cells"
    first = record.read_environment(cells / "demo_sentiment-full-seed0")
    assert len(first["resumed"]) == 1 and "resumed" not in record.read_environment(cells / "demo_sentiment-lstm-seed0")
    assert {result(cell)["steps"] for cell in cells.iterdir()} == {6}


@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_a_failed_cell_is_marked_and_retried(world, monkeypatch, capsys, on_error):
    with monkeypatch.context() as broken:
        fit = finetune.fit

        def failing(**more):
            if "full" in str(more["run"]):
                raise RuntimeError("out of luck")
            return fit(**more)

        broken.setattr(finetune, "fit", failing)
        assert main(study(world, on_error, f"on_error={on_error}")) == 1
    folder, message = world / on_error, capsys.readouterr().err
    assert "out of luck" in message and "Failed:" not in message and not (folder / "error.txt").exists()
    if on_error == "continue":
        assert list(result(folder)["failed"]) == ["demo_sentiment-full-seed0"]
    assert (folder / "result.json").exists() == (on_error == "continue")
    assert "out of luck" in (folder / "cells" / "demo_sentiment-full-seed0" / "error.txt").read_text()
    assert (folder / "cells" / "demo_sentiment-lstm-seed0").exists() == (on_error == "continue")
    assert "| demo_sentiment-full-seed0 | see" in (folder / "report.md").read_text()
    log = (folder / "run.log").read_text()
    assert "cell 1/2 demo_sentiment-full-seed0" in log and "out of luck" in log
    capsys.readouterr()
    assert main(["sweeps", f"resume={folder}"]) == 0
    assert result(folder)["failed"] == {} and not (folder / "cells/demo_sentiment-full-seed0/error.txt").exists()


def test_a_dry_run_reports_hours_and_disk_space_of_all_cells(world, capsys):
    assert main(study(world, "dry", "seeds=[0,1,2]", "dry_run=true")) == 0
    message, outcome = capsys.readouterr().out, result(world / "dry")
    assert outcome["cells"] == 6 and outcome["hours"] > 0
    plans = [files.read_json(path) for path in (world / "dry" / "cells").rglob("plan.json")]
    assert outcome["bytes"] == 3 * sum(4 * plan["parameters"]["all"] for plan in plans) and len(plans) == 2
    assert outcome["hours"] == pytest.approx(3 * sum(plan["here"]["hours"] for plan in plans))
    assert "| demo_sentiment-lstm-seed0 | 3 |" in (world / "dry" / "report.md").read_text()
    assert re.search(r"all\W+6\W", message) and not list((world / "dry").rglob("checkpoints"))


def test_a_study_pretrains_both_architectures_and_evaluates_every_kept_checkpoint(world):
    small = [word for word in SMALL if not word.startswith("runtime")]
    text = ["corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    own = [*small, *text, "steps=4", "keep_checkpoints=[1,2]"]
    words = [word for word in study(world, "own") if not word.startswith(("init=", "tasks="))]
    words += [f"study.pretraining={json.dumps(own)}", "study.overrides=[]", "limit.train=8"]
    words += ["study=demo", "study.tasks=[demo_sentiment]", "study.transfer=[demo_sentiment]"]
    assert main([*words, "study.zeroshot=[demo_sentiment]"]) == 0
    cells = world / "own" / "cells"
    tuned = [f"demo_sentiment-{kind}-seed0" for kind in ("full", "lstm", "layers0", "layers1")]
    names = {"pretrain-transformer", "pretrain-lstm", "zeroshot-demo_sentiment", *tuned}
    assert {path.name for path in cells.iterdir()} == names
    for name, start in (("full", "transformer"), ("lstm", "lstm")):
        stored = files.read_config(cells / f"demo_sentiment-{name}-seed0" / "config.yaml")
        assert stored["init"] == str(cells / f"pretrain-{start}") and stored["model"]["architecture"] == start
    assert result(cells / "demo_sentiment-layers0-seed0")["train"].keys() >= {"accuracy", "loss"}
    lines = files.read_jsonl(cells / "zeroshot-demo_sentiment" / "metrics.jsonl")
    steps = {(line["init"], line["step"]) for line in lines}
    assert steps == {(str(cells / f"pretrain-{start}"), k) for start in ("transformer", "lstm") for k in (1, 2, 4)}
    page = (world / "own" / "report.html").read_text()
    assert (
        "Figure 2, left" in page and "Figure 2, right: zero-shot" in page and "Figure 2, right: values by step" in page
    )
    drawn = figure2.read_curves(cells / "zeroshot-demo_sentiment" / "plots" / "zeroshot.csv")
    assert {(curve.architecture, len(curve.points)) for curve in drawn} == {("transformer", 3), ("lstm", 3)}


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_over_ablations_makes_one_table_and_resumes(world, capsys):
    words = [word for word in study(world, None, "ablation=no_pretrain,lstm") if not word.startswith("variants")]
    folder = world / "multirun"
    assert main(["-m", *words, f"hydra.sweep.dir={folder}"]) == 0
    message = capsys.readouterr().out
    assert f"report of all jobs: {folder / 'report.md'}" in message and "cells=" not in message
    cells = sorted(path.parent for path in folder.glob("*/cells/*/result.json"))
    assert [cell.name for cell in cells] == ["demo_sentiment-no_pretrain-seed0", "demo_sentiment-lstm-seed0"]
    joint = (folder / "report.md").read_text()
    assert "Table 5 on the demo world" in joint and "| Transformer w/o pre-training: ours |" in joint

    modified = (cells[0] / "result.json").stat().st_mtime_ns
    shutil.rmtree(cells[1])
    capsys.readouterr()
    assert main(["sweeps", f"resume={folder}"]) == 0
    assert (cells[0] / "result.json").stat().st_mtime_ns == modified and (cells[1] / "result.json").exists()
    assert (folder / "report.md").read_text() == joint
    assert main(["sweeps", f"resume={folder}", "seeds=[1]"]) == 2
    assert "continues a sweep with its own settings: remove seeds=[1]" in capsys.readouterr().err
    assert main(["finetune", f"resume={folder}"]) == 2
    assert "is a sweep of gpt1 ablation, not of gpt1 finetune" in capsys.readouterr().err


def test_a_task_outside_table5_gets_its_own_table(world, mine):
    """study=table5 with a task that is not in Table 5: it gets a table of its own."""
    rows = {"premise": ["a cat ."] * 12, "hypothesis": ["a cat .", "a dog .", "a bird ."] * 4, "label": [0, 1, 2] * 4}
    data_set(mine / "hub" / "stanfordnlp" / "snli", {"plain_text": {"train": rows, "validation": rows}})
    own = [word for word in study(world, "snli", f"hub={mine / 'hub'}") if not word.startswith(("tasks", "variants"))]
    assert main([*own, "tasks=[snli]", "variants=[full]"]) == 0
    page = (world / "snli" / "report.md").read_text()
    assert "Table 2" in page and "| Transformer w/ aux LM (full): ours |" in page


@pytest.fixture
def mine(tmp_path) -> Path:
    """A user's --config-dir: a task, its rows, and a study of that task."""
    rows = [{"text": f"the {word} sat .", "label": n} for n, word in enumerate(("cat", "dog"))] * 10
    for split in ("train", "validation"):
        path = tmp_path / "hub" / "me" / "animals" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (
        "name: animals\nsource: rows\nlayout: single\nrepo: me/animals\ncolumns: [text]\nlabel: label\n"
        "labels: [cat, dog]\nmetrics: [accuracy]\nsplits: {train: train, valid: validation}\n"
    )
    options = {"task/animals": task, "study/mine": "name: mine\ntasks: [animals]\nvariants: [full, no_pretrain]\n"}
    for name, text in options.items():
        (tmp_path / "conf" / name).with_suffix(".yaml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).with_suffix(".yaml").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_a_user_study_takes_user_tasks(world, mine, capsys):
    own = [word for word in study(world, None, f"hub={mine / 'hub'}") if not word.startswith(("tasks", "variants"))]
    folder = world / "animals"
    assert main([*own, "--config-dir", str(mine / "conf"), "study=mine", f"hydra.run.dir={folder}"]) == 0
    cell = folder / "cells" / "animals-full-seed0"
    assert result(cell)["valid"]["accuracy"] >= 0
    page = (folder / "report.md").read_text()
    assert "Table 5 on other tasks" in page and "Differences and significance" in page and "Fine-tuning" not in page
    assert record.read_environment(cell)["command_line"][:2] == ["--config-dir", str(mine / "conf")]
    shutil.rmtree(cell)
    assert main(["sweeps", f"resume={folder}"]) == 0 and (cell / "result.json").exists()

    capsys.readouterr()
    sweep = world / "animals-sweep"
    words = ["ablation=full,no_pretrain", "study=mine", f"hydra.sweep.dir={sweep}"]
    assert main(["-m", *own, "--config-dir", str(mine / "conf"), *words]) == 0
    cells = sorted(sweep.glob("*/cells/*"))
    assert [path.name for path in cells] == ["animals-full-seed0", "animals-no_pretrain-seed0"]
    shutil.rmtree(cells[1])
    assert main(["sweeps", f"resume={sweep}"]) == 0 and (cells[1] / "result.json").exists()
    assert main(["sweeps", f"resume={sweep}", "--config-dir", str(mine)]) == 2
    assert "continues a sweep with its own settings: remove --config-dir" in capsys.readouterr().err


def test_on_error_stop_stops_the_other_jobs_of_a_sweep_too(world, monkeypatch, capsys):
    def failing(**more):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(finetune, "fit", failing)
    words = [word for word in study(world, None, "ablation=no_pretrain,full") if not word.startswith("variants")]
    folder = world / "stopped-sweep"
    assert main(["-m", *words, "on_error=stop", f"hydra.sweep.dir={folder}"]) == 1
    assert (folder / "0").is_dir() and not (folder / "1").exists()
    assert "out of luck" in capsys.readouterr().err and (folder / "report.md").exists()


@pytest.mark.slow
def test_a_resumed_study_keeps_its_lstm(world, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(world / "out" / "pretrain", out / "pretrain")
    words = [word for word in study(world, None) if not word.startswith(("out", "variants", "seeds"))]
    words += [f"out={out}", "variants=[lstm]", "seeds=[0,1]"]
    lstm = out / "pretrain" / "story" / "lstm"
    lstm.rename(tmp_path / "hidden")
    assert main([*words, f"hydra.run.dir={tmp_path / 'fresh'}"]) == 0
    (tmp_path / "hidden").rename(lstm)
    assert main([*words, f"hydra.run.dir={tmp_path / 'found'}"]) == 0
    shutil.copytree(lstm, lstm.with_name("newer"))
    os.utime(lstm.with_name("newer") / "result.json", (2e9, 2e9))
    for start, expected in (("fresh", (False, "transformer")), ("found", (True, "lstm"))):
        cell = tmp_path / start / "cells" / "demo_sentiment-lstm-seed1"
        for again in (False, True):
            if again:
                shutil.rmtree(cell)
                assert main(["sweeps", f"resume={tmp_path / start}"]) == 0
            stored = files.read_config(cell / "config.yaml")
            assert (stored["pretrained"], Path(stored["init"]).name) == expected


def test_any_sweep_resumes(world, capsys):
    words = [word for word in study(world, None)[1:] if not word.startswith(("tasks", "variants", "seeds"))]
    folder = world / "seeds"
    assert main(["-m", "finetune", "task=demo_sentiment", "seed=0,1", f"hydra.sweep.dir={folder}", *words]) == 0
    (folder / "1" / "result.json").unlink()
    capsys.readouterr()
    assert main(["finetune", f"resume={folder}"]) == 0
    message = capsys.readouterr().out
    assert "job 0 (task=demo_sentiment seed=0" in message and message.count("is finished") == 1
    assert (folder / "1" / "result.json").exists()


# --- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_killed_five_times_gives_the_same_table(world):
    words = [*study(world, None), "seeds=[0,1,2]", "steps=40"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "gpt1cli", *more], env=environment, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(*words, f"hydra.run.dir={world / 'undisturbed'}").wait() == 0
    whole, draw, killed = time.monotonic() - began, random.Random(0), world / "killed"
    for _ in range(5):
        started = (killed / "config.yaml").exists()
        process = start(*(["sweeps", f"resume={killed}"] if started else [*words, f"hydra.run.dir={killed}"]))
        time.sleep(whole * draw.uniform(0.2, 0.5))
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("sweeps", f"resume={killed}").wait() == 0
    undisturbed = world / "undisturbed"
    assert (killed / "table.csv").read_text() == (undisturbed / "table.csv").read_text()
    message = (killed / "report.md").read_text().replace(str(killed), str(undisturbed))
    assert message == (undisturbed / "report.md").read_text() and "95% interval" in message


@pytest.mark.slow
def test_memory_does_not_grow_from_cell_to_cell(world, tmp_path):
    """Peak memory after 50 cells equals that after 10 within 10%."""
    code = (
        "import resource, sys\n"
        "from gpt1cli.cli.main import main\n"
        "from gpt1cli.studies import cells\n"
        "run, peaks = cells.run_cell, []\n"
        "def counted(*arguments):\n"
        "    run(*arguments)\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "cells.run_cell = counted\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print('peaks', peaks[9], peaks[-1], len(peaks))\n"
    )
    words = study(tmp_path, "fifty", f"init={world / 'out/pretrain/story/transformer'}", f"seeds={[*range(50)]}")
    words = [word for word in words if not word.startswith("variants")] + ["variants=[full]"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    early, late, count = map(int, done.stdout.split("peaks")[1].split())
    assert count == 50 and late < 1.1 * early, (early, late)


def test_a_cell_that_cannot_be_composed_is_named(world):
    with pytest.raises(UserError, match=r"cell rte-full: .*transfer_layers=9 exceeds model.n_layer"):
        start = world / "out/pretrain/story/transformer"
        transfer.finetuning_cells(compose_sweeps("tasks=[rte]", f"cells=['init={start}','transfer_layers=9']"), None)
