"""A sweep's jobs in other processes: command line, data passed to them, signals, restarts by a scheduler."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cloudpickle
import pytest
import torch
from safetensors.torch import load_file
from worlds import SMALL, STORY

from gpt1cli.cli import execute, sweep
from gpt1cli.cli.hydra_loader import LAUNCHER_EXTRAS, Composer, ConfigSource
from gpt1cli.cli.main import main
from gpt1cli.config.schema import UserError
from gpt1cli.runs import files as runs_files
from gpt1cli.runs import folder as runs_folder
from gpt1cli.runs import record

pytestmark = pytest.mark.usefixtures("no_pictures")

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LOCAL = ("hydra/launcher=submitit_local",)
RAY = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false")
RESTART = "SLURM_RESTART_COUNT"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for variable in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "GPT1_HUB", "GPT1_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(sweep.__file__).parents[2]), *sys.path]))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text file."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    return root


def pretrain(root: Path, *more: str) -> list[str]:
    """A pretraining of some seconds that validates and saves only at its end."""
    return [
        "pretrain", *SMALL, "corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30",
        f"cache={root / 'cache'}", "steps=8", "eval_every=8", "log_every=1", *more,
    ]  # fmt: skip


def finetune(root: Path, *more: str) -> list[str]:
    """A sweep over eight seeds."""
    return [
        "-m", "finetune", "task=demo_sentiment", "seed=0,1,2,3,4,5,6,7", "limit.train=12", "limit.valid=8",
        "limit.test=9", "batch_size=4", "steps=6", "runtime.threads=1", f"cache={root / 'cache'}", *more,
    ]  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", LAUNCHER_EXTRAS)
def test_missing_launcher_is_reported_with_its_extra(monkeypatch, capsys, tmp_path, launcher):
    original = Composer.options
    monkeypatch.setattr(Composer, "options", lambda self, g: ["basic"] if g == "hydra/launcher" else original(self, g))
    assert main(["-m", "finetune", "task=rte", f"out={tmp_path}", f"hydra/launcher={launcher}"]) == 2
    expected = f"gpt1: hydra/launcher={launcher}: not installed: pip install 'gpt1[{LAUNCHER_EXTRAS[launcher]}]'\n"
    assert capsys.readouterr().err == expected and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4", "hydra.launcher.verbose=1"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30", "hydra.launcher.gpus_per_node=1"],
        ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.max_num_timeout=9"],
        ["hydra/launcher=submitit_slurm", "hydra.launcher.setup=[module load cuda]"],
        ["hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters={mail-user: me}"],
    ],
)
def test_valid_launcher_keys_are_accepted(words):
    composer = Composer("finetune")
    checked = composer.check_overrides(["task=rte", "init=none", *words], sweep=True)
    assert composer.sweep_target(checked)[1] == words[0].partition("=")[2]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_job=4"],
            "n_job: no such key; did you mean hydra.launcher.n_jobs?",
        ),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=two"], "'two' of type 'str' could not be converted to Int"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: no such launcher; known: basic, "),
        (
            ["hydra.launcher.n_jobs=4"],
            "hydra.launcher.n_jobs needs hydra/launcher=NAME too, one of joblib",
        ),
        ([*LOCAL, "hydra.launcher.tasks_per_node=2"], "tasks_per_node=2: only 1 is possible; runtime.devices=N"),
    ],
)
def test_invalid_launcher_keys_are_refused_with_a_short_message(capsys, tmp_path, words, fragment):
    assert main(["-m", "finetune", "task=rte", "init=none", f"out={tmp_path}", *words]) == 2
    message = capsys.readouterr().err
    assert fragment in message and len(message.splitlines()) < 4 and not list(tmp_path.iterdir())


def test_launcher_without_a_sweep_is_refused_and_slurm_without_sbatch(capsys, tmp_path, monkeypatch):
    assert main(["finetune", "task=rte", "init=none", f"out={tmp_path}", *JOBLIB]) == 2
    assert "a launcher runs the jobs of a sweep: add -m" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["-m", "finetune", "task=rte", "init=none", f"out={tmp_path}", "hydra/launcher=submitit_slurm"]) == 2
    assert "sbatch not found" in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- other processes --------------------------------------------------------------------------------------------------


def test_run_failed_keeps_its_message_when_pickled():
    copy = pickle.loads(pickle.dumps(execute.RunFailed(2, "why")))
    assert (copy.status, copy.message) == (2, "why")


def test_job_in_another_process_runs_in_the_working_folder_of_the_sweep(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GPT1_HUB", "mirror")
    job = sweep.SweepJob("report", ConfigSource(), (), ("report",), tmp_path / "sweep")
    (tmp_path / "job").write_bytes(cloudpickle.dumps(job))
    monkeypatch.delenv("GPT1_HUB")
    code = (
        "import os, pickle\n"
        "from gpt1cli.cli import sweep\n"
        "sweep.SweepJob._run_job = lambda self, in_process: print(os.getcwd(), os.environ['GPT1_HUB'], in_process)\n"
        "pickle.load(open('job', 'rb'))(None)\n"
    )

    def start_job() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert start_job().stdout == f"{tmp_path / 'here'} mirror False\n"
    (tmp_path / "here").rmdir()
    message = start_job().stderr.splitlines()[-1]
    assert "UserError" in message and "jobs need the same folders on all machines" in message


@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL], ids=["joblib", "submitit_local"])
def test_failures_in_other_processes_are_reported_and_set_the_exit_status(capfd, tmp_path, launcher):
    folder = tmp_path / "sweep"
    words = ["-m", "pretrain", "model=tiny", "corpus=demo", "init=nowhere,else where", f"hydra.sweep.dir={folder}"]
    assert main([*words, *launcher]) == 2
    message = capfd.readouterr().err
    for number, init in enumerate(("nowhere", "else where")):
        assert f"gpt1: job {number} (" in message and f"init={init}: no such folder" in message
    assert "2 jobs failed" in message and "Traceback" not in message and "Error executing job" not in message


def test_error_of_the_launcher_is_one_line_with_a_traceback_file(capsys, tmp_path, monkeypatch):
    def broken(*_):
        raise MemoryError("a worker was killed")

    monkeypatch.setattr(sweep, "run_hydra", broken)
    words = ["-m", "report", "runs=[x]", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}", *JOBLIB]
    assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("gpt1: MemoryError: a worker was killed; traceback in ")
    hint = f"when none of its jobs runs, continue with resume={tmp_path / 'sweep'}"
    assert lines[1:] == [f"gpt1: hydra/launcher=joblib failed; {hint}"]
    assert "MemoryError" in (tmp_path / "sweep" / "error.txt").read_text()


def test_sweep_can_be_resumed_with_another_launcher_only(tmp_path, capsys):
    composer = Composer("report")
    stored = {"command": "report", "overrides": ["runs=['x']", "hydra/launcher=submitit_local", *LOCAL]}
    runs_files.write_json(tmp_path / sweep.SWEEP_FILE, stored)
    assert sweep.resumed_overrides(composer, tmp_path, [f"resume={tmp_path}"]) == stored["overrides"]
    assert sweep.resumed_overrides(composer, tmp_path, [f"resume={tmp_path}", *JOBLIB]) == ["runs=['x']", *JOBLIB]
    with pytest.raises(UserError, match=r"n_job: no such key"):
        sweep.resumed_overrides(composer, tmp_path, ["hydra/launcher=joblib", "hydra.launcher.n_job=2"])
    assert main(["report", f"resume={tmp_path}", *JOBLIB, "seed=1"]) == 2
    assert "with its own settings: remove seed=1" in capsys.readouterr().err


def test_process_that_holds_a_folder_is_known(tmp_path):
    assert runs_folder.lock_owner(tmp_path) is None
    code = "from gpt1cli.runs import folder; import pathlib, sys; "
    code += f"lock = folder.create_folder(pathlib.Path({str(tmp_path)!r})); "
    code += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert runs_folder.lock_owner(tmp_path) == other.pid
        other.kill()
        other.wait()
    assert runs_folder.lock_owner(tmp_path) is None


# --- restarts by a scheduler ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete_run(world) -> Path:
    """A run that was not interrupted."""
    assert main(pretrain(world, f"hydra.run.dir={world / 'whole'}")) == 0
    return world / "whole"


@pytest.fixture
def interrupted_run(world, complete_run, tmp_path, monkeypatch) -> Path:
    """The same run, ended by SIGTERM in its third step."""
    progress = execute.importlib.import_module("gpt1cli.training.loop").Progress
    update = progress.update

    def interrupting_update(self, step, **values):
        update(self, step, **values)
        if step == 3 and self.description == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(progress, "update", interrupting_update)
        assert main(pretrain(world, f"hydra.run.dir={tmp_path / 'cut'}")) == 143
    assert os.readlink(tmp_path / "cut" / "checkpoints" / "last") == "4"
    return tmp_path / "cut"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_restarted_run_is_resumed_and_a_finished_one_is_kept(
    world, complete_run, interrupted_run, monkeypatch, capsys, variable
):
    words = pretrain(world, f"hydra.run.dir={interrupted_run}")
    for count in (None, "0"):
        monkeypatch.setenv(variable, count) if count else monkeypatch.delenv(variable, raising=False)
        assert main(words) == 2
        assert "already contains a run: continue it with resume=" in capsys.readouterr().err
    monkeypatch.setenv(variable, "1")
    assert main(words) == 0
    assert f"gpt1: {variable}=1: resuming {interrupted_run}\n" in capsys.readouterr().out
    assert same(weights(interrupted_run), weights(complete_run))
    before = files(interrupted_run)
    assert main(words) == 0
    assert (
        capsys.readouterr().out == f"gpt1: {variable}=1: {interrupted_run} is finished\n"
        and files(interrupted_run) == before
    )


def test_restarted_run_with_another_configuration_is_refused_with_the_differences(
    world, interrupted_run, monkeypatch, capsys
):
    monkeypatch.setenv(RESTART, "2")
    before = files(interrupted_run)
    assert (
        main(pretrain(world, f"hydra.run.dir={interrupted_run}", "lr=0.5", "model.n_layer=1", "runtime.threads=2")) == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("with another configuration, and SLURM_RESTART_COUNT=2 can only resume the same one:")
    assert sorted(lines[1:3]) == ["  lr=0.5: the folder has 0.001", "  model.n_layer=1: the folder has 2"]
    assert files(interrupted_run) == before
    assert main(["prepare", "corpus=demo", f"cache={world / 'cache'}", f"hydra.run.dir={interrupted_run}"]) == 2
    assert "command=prepare: the folder has pretrain" in capsys.readouterr().err


def test_restarted_command_that_cannot_resume_starts_again(world, complete_run, tmp_path, monkeypatch, capsys):
    (world / "lines.txt").write_text("the cat sat\n")
    words = ["score", f"init={complete_run}", f"input={world / 'lines.txt'}", f"hydra.run.dir={tmp_path / 'scored'}"]
    assert main(words) == 0
    (tmp_path / "scored" / "result.json").unlink()
    monkeypatch.setenv(RESTART, "1")
    assert main(words) == 0
    assert "starting again in" in capsys.readouterr().out and (tmp_path / "scored" / "result.json").exists()


def test_restarted_sweep_resumes_its_jobs(world, tmp_path, monkeypatch, capsys):
    words = ["-m", *pretrain(world, "steps=2,3", "eval_every=null", f"hydra.sweep.dir={tmp_path / 'sweep'}")]
    assert main(words) == 0
    (tmp_path / "sweep" / "1" / "result.json").unlink()
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setenv(RESTART, "1")
    assert main(words) == 0
    output = capsys.readouterr().out
    assert output.count(" is finished\n") == 1 and (tmp_path / "sweep" / "1" / "result.json").exists()
    assert main([*words, "lr=0.5"]) == 2
    assert "was started with another configuration" in capsys.readouterr().err


# --- slow: real launchers ---------------------------------------------------------------------------------------------


def start(words: list[str], **more) -> subprocess.Popen[str]:
    process = [sys.executable, "-m", "gpt1cli", *words]
    return subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def until_trained(run: Path, process: subprocess.Popen[str], lines: int = 2) -> int:
    """The id of the process that trains in a folder, after it has written some lines of metrics."""
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= lines and (pid := runs_folder.lock_owner(run)):
            return pid
        time.sleep(0.05)
    raise AssertionError(f"it ended before it was interrupted:\n{process.communicate()[0]}")


@pytest.fixture(scope="module")
def basic_sweep(tmp_path_factory) -> Path:
    """A sweep of eight jobs, one after the other."""
    root = tmp_path_factory.mktemp("plain")
    assert main(finetune(root, f"hydra.sweep.dir={root / 'sweep'}")) == 0
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL, RAY], ids=["joblib", "submitit_local", "ray"])
def test_eight_jobs_in_other_processes_give_the_same_results(basic_sweep, tmp_path, launcher):
    if launcher is RAY:  # not in the dev extra: it is heavy
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra ray")
    process = start(finetune(basic_sweep, f"hydra.sweep.dir={tmp_path / 'sweep'}", *launcher))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    compared = ("seed", "steps", "best_step", "valid", "test", "examples")
    for number in range(8):
        ours, theirs = (result(root / "sweep" / str(number)) for root in (tmp_path, basic_sweep))
        assert {key: ours[key] for key in compared} == {key: theirs[key] for key in compared}
        assert same(weights(tmp_path / "sweep" / str(number)), weights(basic_sweep / "sweep" / str(number)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sweep_of_studies_in_other_processes_gives_the_same_table(world, complete_run, tmp_path):
    words = [
        "-m", "sweeps", "ablation=full,no_pretrain,no_aux_lm", f"init={complete_run}", f"cache={world / 'cache'}",
        "tasks=[demo_sentiment]", "seeds=[0]", "limit.train=8", "limit.valid=6", "limit.test=6", "batch_size=4",
        "steps=2", "runtime.threads=1",
    ]  # fmt: skip
    for name, launcher in (("here", ()), ("elsewhere", JOBLIB)):
        process = start([*words, *launcher, f"hydra.sweep.dir={tmp_path / name}"])
        assert process.wait() == 0, process.communicate()[0]
    here, elsewhere = ((tmp_path / name / "report.md").read_text() for name in ("here", "elsewhere"))
    assert elsewhere.replace(str(tmp_path / "elsewhere"), str(tmp_path / "here")) == here
    assert "Transformer w/o aux LM" in here


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_preempted_submitit_job_is_requeued_and_reaches_the_same_weights(world, tmp_path):
    long = ("steps=400", "eval_every=400")
    assert main(pretrain(world, *long, f"hydra.run.dir={tmp_path / 'whole'}")) == 0
    process = start(["-m", *pretrain(world, *long, "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}", *LOCAL)])
    job = tmp_path / "sweep" / "0"
    os.kill(until_trained(job, process, 5), signal.SIGUSR2)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert len(record.read_environment(job)["resumed"]) == 1
    assert "stopped by SIGUSR2 at step" in (job / "run.log").read_text()
    assert same(weights(job), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL], ids=["joblib", "submitit_local"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_sweep_in_other_processes_saves_its_jobs_and_resumes(world, tmp_path, launcher, number, status):
    folder = tmp_path / "sweep"
    words = pretrain(world, "steps=400", "eval_every=400", "seed=0,1,2,3", f"hydra.sweep.dir={folder}", *launcher)
    process = start(["-m", *words], start_new_session=True)
    until_trained(folder / "0", process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # Ctrl-C reaches all
    output = process.communicate()[0]
    assert process.returncode == status and "Traceback" not in output, output
    assert "stopping the jobs after saving checkpoints" in output and (folder / "0" / "checkpoints" / "last").exists()
    time.sleep(1)
    assert not any(runs_folder.lock_owner(path.parent) for path in folder.glob("*/.lock"))
    resumed = start(["pretrain", f"resume={folder}"])
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert [result(folder / str(job))["steps"] for job in range(4)] == [400] * 4
    assert "resumed" in record.read_environment(folder / "0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_job_ends_the_sweep_with_one_message(world, tmp_path):
    folder = tmp_path / "sweep"
    words = ["-m", *pretrain(world, "steps=400", "eval_every=400", "seed=0,1", f"hydra.sweep.dir={folder}", *JOBLIB)]
    process = start(words)
    os.kill(until_trained(folder / "0", process), signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "TerminatedWorkerError" in output and f"continue with resume={folder}" in output


SLURM = {  # the part of Slurm that submitit uses, on one machine: a job array, its states, requeueing
    "sbatch": """
        import os, pathlib, re, subprocess, sys
        script = pathlib.Path(sys.argv[1]).read_text()
        last = int(re.search(r"--array=0-(\\d+)", script)[1])
        for task in range(last + 1):
            options = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen([sys.executable, f"{HERE}/node", sys.argv[1], str(task)], **options)
        print("Submitted batch job 7")
    """,
    "node": """
        import os, pathlib, subprocess, sys
        name, state = f"7_{sys.argv[2]}", pathlib.Path(HERE, f"7_{sys.argv[2]}.state")
        env = {**os.environ, "SLURM_JOB_ID": "7" + sys.argv[2], "SLURM_ARRAY_JOB_ID": "7"}
        env |= {"SLURM_ARRAY_TASK_ID": sys.argv[2], "SLURM_PROCID": "0", "SLURM_CPUS_PER_TASK": "1"}
        for count in range(5):
            state.write_text("RUNNING")
            code = subprocess.run(["bash", sys.argv[1]], env={**env, "SLURM_RESTART_COUNT": str(count)}).returncode
            requeued = state.read_text() == "REQUEUED"
            if not requeued:
                break
        state.write_text("FAILED" if code else "COMPLETED")
    """,
    "srun": """
        import os, sys
        args = sys.argv[1:]
        task = os.environ["SLURM_ARRAY_TASK_ID"]
        for flag, number in (("--output", 1), ("--error", 2)):
            path = args[args.index(flag) + 1].replace("%A", "7").replace("%a", task).replace("%t", "0")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.dup2(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
        os.execv(sys.executable, args[args.index(sys.executable):])
    """,
    "scontrol": """
        import pathlib, sys
        assert sys.argv[1] == "requeue"
        pathlib.Path(HERE, f"{sys.argv[2]}.state").write_text("REQUEUED")
    """,
    "sacct": """
        import pathlib
        print("JobID|State|NodeList")
        for path in pathlib.Path(HERE).glob("*.state"):
            print(f"{path.stem}|{path.read_text()}|here")
    """,
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sweep_waits_for_slurm_jobs_and_a_preempted_one_continues(world, tmp_path, monkeypatch):
    """Fake Slurm programs; submitit's code and ours are real."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, code in SLURM.items():
        (bin / name).write_text(f"#!{sys.executable}\nHERE = {str(bin)!r}\n{textwrap.dedent(code)}")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    long = ("steps=400", "eval_every=400")
    folder = tmp_path / "sweep"
    slurm = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu", "hydra.launcher.cpus_per_task=1")
    process = start(["-m", *pretrain(world, *long, "seed=0,1", f"hydra.sweep.dir={folder}", *slurm)])
    job = until_trained(folder / "0", process, 5)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # like Slurm: a warning, then submitit's signal
        os.kill(job, number)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert len(record.read_environment(folder / "0")["resumed"]) == 1 and result(folder / "1")["steps"] == 400
    assert main(pretrain(world, *long, f"hydra.run.dir={tmp_path / 'whole'}")) == 0
    assert same(weights(folder / "0"), weights(tmp_path / "whole"))
