"""The command line: argv, help without heavy imports, exit statuses, run folders, sweeps, completion."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt1cli.cli import help, main
from gpt1cli.cli.argv import parse_argv
from gpt1cli.cli.help import EXAMPLES
from gpt1cli.config import commands as config_commands
from gpt1cli.config import options, schema
from gpt1cli.config.schema import UserError
from gpt1cli.config.version import __version__
from gpt1cli.data import hub
from gpt1cli.runs import files as runs_files
from gpt1cli.runs import record

REPORT = ["report", "runs=[somewhere]"]  # the command that composes fastest


@pytest.fixture(autouse=True)
def commands(tmp_path, monkeypatch):
    """Commands that only record their arguments; a test replaces `run`, `needs` or `check_requirements`."""
    calls: list[tuple[Any, Path]] = []
    fakes = SimpleNamespace(calls=calls, needs=lambda _: [], check_requirements=lambda needs, hub, cache: None)
    fakes.run = lambda config, folder: calls.append((config, folder))
    module = SimpleNamespace(
        needs=lambda config: fakes.needs(config), run=lambda config, folder: fakes.run(config, folder)
    )
    monkeypatch.setattr(hub, "check_requirements", lambda *arguments: fakes.check_requirements(*arguments))
    for name in config_commands.COMMANDS:
        monkeypatch.setitem(sys.modules, f"gpt1cli.commands.{name}", module)
    for variable in ("GPT1_HUB", "GPT1_CACHE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(main.__file__).parents[2]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return fakes


def files() -> list[str]:
    return sorted(str(path) for path in Path.cwd().rglob("*"))


# --- argv -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "model=base", "-m", "--config-dir", "mine"],
        ["-m", "--config-dir=mine", "model=base", "pretrain"],
        ["--config-dir", "mine", "model=base", "pretrain", "--multirun"],
    ],
)
def test_command_is_the_first_word_without_equals_sign(words):
    line = parse_argv(words)
    assert (line.command, line.overrides) == ("pretrain", ["model=base"])
    assert line.flags == {"--multirun": "", "--config-dir": "mine"}


def test_value_of_a_flag_is_not_the_command():
    assert parse_argv(["--config-name", "pretrain", "report"]).command == "report"
    assert parse_argv(["--info", "pretrain"]).flags == {"--info": "all"}
    assert parse_argv(["--info", "config", "pretrain"]).flags == {"--info": "config"}


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["pretrian"], "pretrian: no such command; did you mean pretrain?"),
        (["train-a-model"], "known: ablation, bench, doctor, evaluate, export, few-shot, fewshot, finetune, generate"),
        ([""], ": no such command"),
        (["pretrain", "model=tiny", "finetune"], "unexpected word 'finetune': one command at a time"),
        (["finetune", "sst2"], "unexpected word 'sst2': did you mean task=sst2?"),
        (["pretrain", "--multirn"], "--multirn: no such flag; did you mean --multirun?"),
        (["pretrain", "--experimental-rerun", "x.pickle"], "--experimental-rerun: no such flag"),
        (["pretrain", "-1"], "-1: no such flag"),
        (["pretrain", "--multirun=yes"], "--multirun takes no value"),
        (["pretrain", "--cfg"], "--cfg takes one of job, hydra, all"),
        (["pretrain", "--cfg", "jobs"], "--cfg takes one of job, hydra, all, not jobs"),
        (["pretrain", "--config-dir", ""], "--config-dir takes a value"),
        (["pretrain", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["pretrain", "-m", "--cfg", "job"], "--multirun and --cfg: use only one of them"),
        (["pretrain", "--resolve"], "--resolve needs --cfg job"),
        (["model=base"], "a command is needed, one of prepare, pretrain, finetune, ablation, evaluate, predict"),
        (["-m"], "a command is needed"),
    ],
)
def test_wrong_command_line_exits_2_with_a_short_message(capsys, words, fragment):
    assert main.main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("gpt1: ") and fragment in message and len(message.splitlines()) < 4
    assert files() == []


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys, io, contextlib\n"
        "from gpt1cli.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for words in ([], ['--help'], ['-h'], ['finetune', '--help'], ['--version']): assert main(words) == 0\n"
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'numpy', 'datasets') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_help_lists_every_command_group_option_and_key(capsys):
    assert main.main([]) == main.main(["--help"]) == 0
    front = capsys.readouterr().out
    assert front == help.front_page() * 2
    assert all(f"\n  {command} " in front for command in config_commands.COMMANDS)
    for command, (cls, *_) in config_commands.COMMANDS.items():
        assert main.main([command, "lr=nonsense", "-h"]) == 0
        page = capsys.readouterr().out
        assert max(map(len, page.splitlines())) <= 100
        assert page.count(f"  gpt1 {command} ") == 3  # the examples
        groups = options.defaults(command)[0]
        for group in groups:
            assert f"{group}=OPTION" in page
            assert all(f"\n  {option} " in page for option in options.names(group))
            assert all(f"  {group}.{key}" in page for key in schema.config_fields(config_commands.GROUPS[group]))
        for key in cls.__dataclass_fields__.keys() - groups.keys() - {"limit", "plan", "few", "grid"}:
            assert f"\n  {key}=" in page
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpt1 {__version__}\n"


@pytest.mark.parametrize(("command", "words"), [(c, w) for c, examples in EXAMPLES.items() for w, _ in examples])
def test_every_example_of_the_help_is_valid(command, words):
    from gpt1cli.cli.hydra_loader import Composer

    line = parse_argv([command, *shlex.split(words)])
    assert Composer(command).check_overrides(line.overrides, sweep="--multirun" in line.flags)


def test_closed_stdout_is_not_an_error():
    for words in ("--help", "finetune --help", "pretrain --cfg job"):
        line = f"{sys.executable} -u -m gpt1cli {words} | true; exit ${{PIPESTATUS[0]}}"
        process = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")


# --- Hydra's own flags ------------------------------------------------------------------------------------------------


def test_cfg_info_and_hydra_help_print_hydras_output(capsys):
    assert main.main(["--cfg", "job", "pretrain", "-p", "model", "model=tiny"]) == 0
    assert capsys.readouterr().out.startswith("# @package model\nname: tiny\n")
    assert main.main(["finetune", "--cfg", "job", "--resolve", "-p", "out", "out=a, ${b}"]) == 0
    assert capsys.readouterr().out == "a, ${b}\n"
    assert main.main(["finetune", "--cfg", "job", "-p", "nothing"]) == 2
    assert main.main(["finetune", "--cfg", "job", "lr=nan"]) == 2
    assert main.main(["pretrain", "--info", "defaults-tree"]) == 0
    assert "corpus: bookcorpusopen" in capsys.readouterr().out
    assert main.main(["--hydra-help"]) == 0
    assert "hydra.cc" in capsys.readouterr().out
    assert files() == []


# --- one run ----------------------------------------------------------------------------------------------------------


def test_run_gets_its_configuration_and_a_new_folder(commands):
    words = ["pretrain", "model=tiny", "corpus=demo", "steps=5", "out=my, 'runs'"]
    directory, arguments = os.getcwd(), sys.argv
    assert main.main(words) == 0
    [(config, folder)] = commands.calls
    assert isinstance(config, config_commands.PretrainConfig) and (config.steps, config.epochs) == (5, None)
    assert folder.parent == Path.cwd() / "my, 'runs'" / "pretrain" / "demo"
    assert runs_files.read_config(folder / "config.yaml")["out"] == "my, 'runs'"
    assert record.read_environment(folder)["command_line"] == words
    assert runs_files.read_config(folder / ".hydra" / "config.yaml")["model"]["name"] == "tiny"
    assert (os.getcwd(), sys.argv, "HYDRA_FULL_ERROR" in os.environ) == (directory, arguments, False)


@pytest.mark.parametrize("words", [["lr=nan"], ["model.n_head=5"], ["init=nowhere"], ["hydra/launcher=nope"]])
def test_refused_run_leaves_no_files(capsys, commands, words):
    assert main.main(["pretrain", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert files() == [] and commands.calls == []


def test_missing_requirements_are_reported_before_a_folder_is_created(capsys, commands):
    def check_requirements(needs, hub, cache):
        raise UserError(f"not reachable: {needs} in {hub}")

    commands.needs, commands.check_requirements = lambda config: [config.task.repo], check_requirements
    assert main.main(["finetune", "task=rte", "init=none", "hub=mirror"]) == 2
    assert capsys.readouterr().err == f"gpt1: not reachable: ['nyu-mll/glue'] in {Path.cwd() / 'mirror'}\n"
    assert files() == []


def test_later_user_error_exits_2_and_removes_an_empty_folder(capsys, commands):
    def run(config, folder):
        (folder / "run.log").write_text("reading ...")
        raise UserError("runs=[somewhere]: nothing there")

    commands.run = run
    assert main.main(REPORT) == 2
    assert capsys.readouterr().err == "gpt1: runs=[somewhere]: nothing there\n"
    assert [path for path in files() if Path(path).is_file()] == []


def test_internal_error_exits_1_with_one_line_and_a_traceback_file(capsys, commands):
    def run(config, folder):
        commands.calls.append(folder)
        raise ZeroDivisionError("by\nzero")

    commands.run = run
    assert main.main(REPORT) == 1
    error = commands.calls[0] / "error.txt"
    assert capsys.readouterr().err == f"gpt1: ZeroDivisionError: by zero; traceback in {error}\n"
    assert "in run" in error.read_text()


def test_internal_error_without_a_run_folder_writes_a_temporary_file(capsys, commands, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    commands.needs = lambda config: config.no_such_field
    assert main.main(REPORT) == 1
    [message] = capsys.readouterr().err.splitlines()
    traceback = Path(message.rpartition(" ")[2]).read_text()
    assert message.startswith("gpt1: AttributeError: ") and traceback.startswith("Traceback")
    assert files() == []


def test_sigterm_exits_143_and_the_handler_is_restored(capsys, commands):
    def run(config, folder):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before, commands.run = signal.getsignal(signal.SIGTERM), run
    assert main.main(REPORT) == 143
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (SystemExit(), 0)])
def test_exit_status_is_kept(monkeypatch, raised, status):
    def dispatch(words):
        raise raised

    monkeypatch.setattr(main, "_dispatch", dispatch)
    assert main.main([]) == status


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["pretrain", "model=tiny", "corpus=demo"], "continue it with resume={}, or choose another folder"),
        (REPORT, "gpt1 report cannot be resumed: choose another folder, or remove this one first"),
        (
            ["prepare", "corpus=demo"],
            "gpt1 prepare cannot be resumed: choose another folder, or remove this one first",
        ),
    ],
)
def test_existing_run_folder_is_refused_with_a_next_step(capsys, commands, words, fragment):
    words = [*words, "hydra.run.dir=mine"]
    assert main.main(words) == 0
    before = {path: Path(path).read_bytes() for path in files() if Path(path).is_file()}
    assert main.main(words) == 2
    folder = Path.cwd() / "mine"
    assert capsys.readouterr().err == f"gpt1: {folder} already contains a run: {fragment.format(folder)}\n"
    assert {path: Path(path).read_bytes() for path in before} == before


def test_resumed_run_uses_its_folder_and_keeps_its_record(commands):
    assert main.main(["pretrain", "model=tiny", "corpus=demo", "steps=5"]) == 0
    assert main.main(["pretrain", f"resume={commands.calls[0][1]}", "steps=9"]) == 0
    (first, folder), (resumed, resumed_folder) = commands.calls
    assert folder == resumed_folder and (resumed.steps, resumed.lr, resumed.resume) == (9, first.lr, str(folder))
    stored = runs_files.read_config(folder / "config.yaml")
    assert (stored["steps"], stored["resume"]) == (9, None)
    assert record.read_environment(folder)["command_line"] == ["pretrain", "model=tiny", "corpus=demo", "steps=5"]
    assert "steps=5" in (folder / ".hydra" / "overrides.yaml").read_text()


def test_config_file_with_an_unknown_task_name_is_repeated(commands):
    assert main.main(["finetune", "task=demo_sentiment", "task.name=mine", "limit.train=5"]) == 0
    assert main.main(["finetune", f"config={commands.calls[0][1]}/config.yaml", "limit.train=6"]) == 0
    repeated = commands.calls[1][0]
    assert (repeated.task.name, repeated.limit.train, repeated.name) == ("mine", 6, "mine")


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_sweep_runs_every_job_in_its_own_folder_and_continues_after_a_failure(capsys, commands):
    def run(config, folder):
        commands.calls.append((config, folder))
        if config.seed == 0:
            raise ValueError("boom")

    commands.run = run
    assert main.main(["-m", *REPORT, "seed=0,1", "name=a,b"]) == 2  # a literal name with a comma in it
    assert main.main(["-m", *REPORT, "seed=0,1"]) == 1
    assert [config.seed for config, _ in commands.calls] == [0, 1]
    first, second = (folder for _, folder in commands.calls)
    assert first.parent == second.parent and first.parent.parent == Path.cwd() / "outputs" / "multirun" / "report"
    assert (first.name, second.name) == ("0", "1") and (first / "error.txt").exists()
    assert record.read_environment(second)["command_line"] == ["-m", *REPORT, "seed=0,1"]
    assert "gpt1: ValueError: boom; traceback in" in capsys.readouterr().err


def test_failing_job_is_named_and_init_can_be_swept(capsys, commands):
    assert main.main(["-m", "pretrain", "model=tiny", "corpus=demo", "init=none,no where"]) == 2
    assert [config.init for config, _ in commands.calls] == ["none"]
    message = capsys.readouterr().err
    assert "gpt1: job 1 (" in message and "init=no where: no such folder" in message and "Traceback" not in message


def test_sweep_of_a_stored_configuration_keeps_its_values(commands):
    assert main.main(["finetune", "task=demo_sentiment", "task.label=gold", "seed=3"]) == 0
    assert main.main(["-m", "finetune", f"config={commands.calls[0][1]}/config.yaml", "lr=1e-3"]) == 0
    config = commands.calls[1][0]
    assert (config.lr, config.seed, config.task.label) == (1e-3, 3, "gold")


def test_nonempty_sweep_folder_is_refused(capsys, commands):
    Path("mine").mkdir()
    Path("mine/multirun.yaml").touch()
    assert main.main(["-m", *REPORT, "seed=0", "hydra.sweep.dir=mine"]) == 2
    assert "is not empty (multirun.yaml)" in capsys.readouterr().err and commands.calls == []


# --- shell completion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("gpt1 pre", {"prepare", "pretrain", "predict"}),
        ("gpt1 --mu", {"--multirun"}),
        ("gpt1 -m finetune mod", {"model=", "model."}),
        ("gpt1 finetune limit.t", {"limit.train=", "limit.test="}),
        ("gpt1 lr=1 finetune model=", {f"model={name}" for name in ("base", "gpt2", "lstm", "mini", "small", "tiny")}),
        ("gpt1 finetune task=demo_s", {"task=demo_sentiment", "task=demo_similarity"}),
        ("gpt1 finetune aux_lm=", {"aux_lm=false", "aux_lm=true"}),
        ("gpt1 pretrain runtime.device=c", {"runtime.device=cpu", "runtime.device=cuda"}),
        ("gpt1 pretrain init=ru", {"init=run1/", "init=rules.txt"}),
        ("gpt1 pretrain lr=", set()),
        ("gpt1 pretrain nonsense model=", set()),
    ],
)
def test_completion_of_commands_groups_options_keys_and_files(capsys, monkeypatch, typed, completions):
    Path("run1").mkdir()
    Path("rules.txt").touch()
    monkeypatch.setenv("COMP_LINE", typed)
    assert main.main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == completions


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_through_the_installed_function(tmp_path):
    program = tmp_path / "gpt1"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpt1cli "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(gpt1 --shell-completion install=bash)"\n'
        'COMP_LINE="gpt1 -m finetune task=demo_se" COMP_POINT=29 COMP_CWORD=3\n'
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("task=demo_sentiment\n", "")
