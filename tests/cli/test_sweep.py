"""A sweep's jobs in other processes: the command line, what crosses over, how it ends; what a scheduler restarts."""

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
from gpt1cli.cli.hydra_loader import EXTRAS, Composer, Source
from gpt1cli.cli.main import main
from gpt1cli.config.schema import UserError
from gpt1cli.runs import files as runs_files
from gpt1cli.runs import folder as runs_folder
from gpt1cli.runs import record

pytestmark = pytest.mark.usefixtures("undrawn")

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LOCAL = ("hydra/launcher=submitit_local",)
RAY = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false")
RESTART = "SLURM_RESTART_COUNT"


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    for variable in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "GPT1_HUB", "GPT1_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(sweep.__file__).parents[2]), *sys.path]))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    return root


def pretrain(root: Path, *more: str) -> list[str]:
    """A pretraining of some seconds that validates and saves at its end alone."""
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


@pytest.mark.parametrize("launcher", EXTRAS)
def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch, capsys, tmp_path, launcher):
    found = Composer.options
    monkeypatch.setattr(Composer, "options", lambda self, g: ["basic"] if g == "hydra/launcher" else found(self, g))
    assert main(["-m", "finetune", "task=rte", f"out={tmp_path}", f"hydra/launcher={launcher}"]) == 2
    told = f"gpt1: hydra/launcher={launcher}: it is not installed: pip install 'gpt1[{EXTRAS[launcher]}]'\n"
    assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


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
def test_what_a_launcher_takes_is_taken(words):
    composer = Composer("finetune")
    checked = composer.check(["task=rte", "init=none", *words], sweep=True)
    assert composer.sweep(checked)[1] == words[0].partition("=")[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_job=4"],
            "n_job: no such key; did you mean hydra.launcher.n_jobs?",
        ),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=two"], "'two' of type 'str' could not be converted to Int"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: no such launcher; there are basic, "),
        (
            ["hydra.launcher.n_jobs=4"],
            "hydra.launcher.n_jobs: of which launcher? name hydra/launcher= too, one of joblib",
        ),
        ([*LOCAL, "hydra.launcher.tasks_per_node=2"], "a job is one task; runtime.devices=N shares it"),
    ],
)
def test_what_a_launcher_does_not_take_is_told_shortly(capsys, tmp_path, words, told):
    assert main(["-m", "finetune", "task=rte", "init=none", f"out={tmp_path}", *words]) == 2
    message = capsys.readouterr().err
    assert told in message and len(message.splitlines()) < 4 and not list(tmp_path.iterdir())


def test_a_launcher_without_a_sweep_is_refused_and_slurm_where_there_is_none(capsys, tmp_path, monkeypatch):
    assert main(["finetune", "task=rte", "init=none", f"out={tmp_path}", *JOBLIB]) == 2
    assert "a launcher runs the jobs of a sweep: add -m" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["-m", "finetune", "task=rte", "init=none", f"out={tmp_path}", "hydra/launcher=submitit_slurm"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- what crosses over ------------------------------------------------------------------------------------------------


def test_a_failure_keeps_what_it_told_on_its_way_from_another_process():
    again = pickle.loads(pickle.dumps(execute.Failed(2, "why")))
    assert (again.status, again.told) == (2, "why")


def test_a_job_in_another_process_stands_where_its_sweep_was_started(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GPT1_HUB", "mirror")
    job = sweep.SweepJob("report", Source(), (), ("report",), tmp_path / "sweep")
    (tmp_path / "job").write_bytes(cloudpickle.dumps(job))
    monkeypatch.delenv("GPT1_HUB")
    code = (
        "import os, pickle\n"
        "from gpt1cli import sweep\n"
        "sweep.SweepJob._run = lambda self, here: print(os.getcwd(), os.environ['GPT1_HUB'], here)\n"
        "pickle.load(open('job', 'rb'))(None)\n"
    )

    def started() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert started().stdout == f"{tmp_path / 'here'} mirror False\n"
    (tmp_path / "here").rmdir()
    told = started().stderr.splitlines()[-1]
    assert "UserError" in told and "jobs need the same folders on all machines" in told


@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL], ids=["joblib", "submitit_local"])
def test_jobs_at_fault_elsewhere_are_told_here_and_their_status_is_the_sweeps(capfd, tmp_path, launcher):
    folder = tmp_path / "sweep"
    words = ["-m", "pretrain", "model=tiny", "corpus=demo", "init=nowhere,else where", f"hydra.sweep.dir={folder}"]
    assert main([*words, *launcher]) == 2
    told = capfd.readouterr().err
    for number, init in enumerate(("nowhere", "else where")):
        assert f"gpt1: job {number} (" in told and f"init={init}: no such folder" in told
    assert "2 of the jobs failed" in told and "Traceback" not in told and "Error executing job" not in told


def test_what_a_launcher_itself_raises_is_one_line_with_a_traceback_on_disk(capsys, tmp_path, monkeypatch):
    def broken(*_):
        raise MemoryError("a worker was killed")

    monkeypatch.setattr(sweep, "hydra_main", broken)
    words = ["-m", "report", "runs=[x]", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}", *JOBLIB]
    assert main(words) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("gpt1: MemoryError: a worker was killed; traceback in ")
    way = f"resume={tmp_path / 'sweep'} goes on when none of its jobs runs"
    assert told[1:] == [f"gpt1: hydra/launcher=joblib gave up; {way}"]
    assert "MemoryError" in (tmp_path / "sweep" / "error.txt").read_text()


def test_a_sweep_goes_on_with_another_launcher_and_nothing_else(tmp_path, capsys):
    composer = Composer("report")
    stored = {"command": "report", "overrides": ["runs=['x']", "hydra/launcher=submitit_local", *LOCAL]}
    runs_files.write_json(tmp_path / sweep.SWEEP, stored)
    assert sweep.again(composer, tmp_path, [f"resume={tmp_path}"]) == stored["overrides"]
    assert sweep.again(composer, tmp_path, [f"resume={tmp_path}", *JOBLIB]) == ["runs=['x']", *JOBLIB]
    with pytest.raises(UserError, match=r"n_job: no such key"):
        sweep.again(composer, tmp_path, ["hydra/launcher=joblib", "hydra.launcher.n_job=2"])
    assert main(["report", f"resume={tmp_path}", *JOBLIB, "seed=1"]) == 2
    assert "as it was begun: leave seed=1 out" in capsys.readouterr().err


def test_the_process_that_works_in_a_folder_is_known(tmp_path):
    assert runs_folder.holder(tmp_path) is None
    code = f"from gpt1cli import rundir; import pathlib, sys; x = rundir.claim(pathlib.Path({str(tmp_path)!r})); "
    code += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert runs_folder.holder(tmp_path) == other.pid
        other.kill()
        other.wait()
    assert runs_folder.holder(tmp_path) is None


# --- started again by a scheduler -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """A run that was never disturbed."""
    assert main(pretrain(world, f"hydra.run.dir={world / 'whole'}")) == 0
    return world / "whole"


@pytest.fixture
def cut(world, whole, tmp_path, monkeypatch) -> Path:
    """The same run, ended by SIGTERM in its third update."""
    progress = execute.importlib.import_module("gpt1cli.training.loop").Progress
    update = progress.update

    def interrupted(self, step, **values):
        update(self, step, **values)
        if step == 3 and self.description == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(progress, "update", interrupted)
        assert main(pretrain(world, f"hydra.run.dir={tmp_path / 'cut'}")) == 143
    assert os.readlink(tmp_path / "cut" / "checkpoints" / "last") == "4"
    return tmp_path / "cut"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_restarted_run_goes_on_and_a_finished_one_is_left_alone(world, whole, cut, monkeypatch, capsys, variable):
    words = pretrain(world, f"hydra.run.dir={cut}")
    for count in (None, "0"):
        monkeypatch.setenv(variable, count) if count else monkeypatch.delenv(variable, raising=False)
        assert main(words) == 2
        assert "already holds a run: go on with it by resume=" in capsys.readouterr().err
    monkeypatch.setenv(variable, "1")
    assert main(words) == 0
    assert f"gpt1: {variable}=1: going on with {cut}\n" in capsys.readouterr().out
    assert same(weights(cut), weights(whole))
    before = files(cut)
    assert main(words) == 0
    assert capsys.readouterr().out == f"gpt1: {variable}=1: {cut} is finished\n" and files(cut) == before


def test_a_restarted_run_of_another_configuration_is_refused_with_what_differs(world, cut, monkeypatch, capsys):
    monkeypatch.setenv(RESTART, "2")
    before = files(cut)
    assert main(pretrain(world, f"hydra.run.dir={cut}", "lr=0.5", "model.n_layer=1", "runtime.threads=2")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("with another configuration, and SLURM_RESTART_COUNT=2 goes on with the same one alone:")
    assert sorted(lines[1:3]) == ["  lr=0.5: the folder has 0.001", "  model.n_layer=1: the folder has 2"]
    assert files(cut) == before
    assert main(["prepare", "corpus=demo", f"cache={world / 'cache'}", f"hydra.run.dir={cut}"]) == 2
    assert "command=prepare: the folder has pretrain" in capsys.readouterr().err


def test_a_restarted_command_that_cannot_go_on_begins_anew(world, whole, tmp_path, monkeypatch, capsys):
    (world / "lines.txt").write_text("the cat sat\n")
    words = ["score", f"init={whole}", f"input={world / 'lines.txt'}", f"hydra.run.dir={tmp_path / 'scored'}"]
    assert main(words) == 0
    (tmp_path / "scored" / "result.json").unlink()
    monkeypatch.setenv(RESTART, "1")
    assert main(words) == 0
    assert "beginning anew in" in capsys.readouterr().out and (tmp_path / "scored" / "result.json").exists()


def test_a_restarted_sweep_goes_on_with_its_jobs(world, tmp_path, monkeypatch, capsys):
    words = ["-m", *pretrain(world, "steps=2,3", "eval_every=null", f"hydra.sweep.dir={tmp_path / 'sweep'}")]
    assert main(words) == 0
    (tmp_path / "sweep" / "1" / "result.json").unlink()
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setenv(RESTART, "1")
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count(" is finished\n") == 1 and (tmp_path / "sweep" / "1" / "result.json").exists()
    assert main([*words, "lr=0.5"]) == 2
    assert "was begun with another configuration" in capsys.readouterr().err


# --- slow: real launchers ---------------------------------------------------------------------------------------------


def start(words: list[str], **more) -> subprocess.Popen[str]:
    process = [sys.executable, "-m", "gpt1cli", *words]
    return subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def until_trained(run: Path, process: subprocess.Popen[str], lines: int = 2) -> int:
    """The process that trains in a folder, once it has written some lines of metrics."""
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= lines and (pid := runs_folder.holder(run)):
            return pid
        time.sleep(0.05)
    raise AssertionError(f"it ended before it was disturbed:\n{process.communicate()[0]}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A sweep of eight jobs one after the other."""
    root = tmp_path_factory.mktemp("plain")
    assert main(finetune(root, f"hydra.sweep.dir={root / 'sweep'}")) == 0
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL, RAY], ids=["joblib", "submitit_local", "ray"])
def test_eight_jobs_elsewhere_give_the_results_of_eight_jobs_here(plain, tmp_path, launcher):
    if launcher is RAY:  # not in the dev extra: it is heavy
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra ray")
    process = start(finetune(plain, f"hydra.sweep.dir={tmp_path / 'sweep'}", *launcher))
    told = process.communicate()[0]
    assert process.returncode == 0, told
    kept = ("seed", "steps", "best_step", "valid", "test", "examples")
    for number in range(8):
        ours, theirs = (result(root / "sweep" / str(number)) for root in (tmp_path, plain))
        assert {key: ours[key] for key in kept} == {key: theirs[key] for key in kept}
        assert same(weights(tmp_path / "sweep" / str(number)), weights(plain / "sweep" / str(number)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_studies_elsewhere_ends_in_the_same_table(world, whole, tmp_path):
    words = [
        "-m", "sweeps", "ablation=full,no_pretrain,no_aux_lm", f"init={whole}", f"cache={world / 'cache'}",
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
def test_a_preempted_job_of_submitit_saves_goes_back_into_the_queue_and_reaches_the_same_weights(world, tmp_path):
    long = ("steps=400", "eval_every=400")
    assert main(pretrain(world, *long, f"hydra.run.dir={tmp_path / 'whole'}")) == 0
    process = start(["-m", *pretrain(world, *long, "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}", *LOCAL)])
    job = tmp_path / "sweep" / "0"
    os.kill(until_trained(job, process, 5), signal.SIGUSR2)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert len(record.environment(job)["resumed"]) == 1
    assert "stopped by SIGUSR2 at step" in (job / "run.log").read_text()
    assert same(weights(job), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL], ids=["joblib", "submitit_local"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_elsewhere_that_is_told_to_end_saves_its_jobs_and_goes_on(world, tmp_path, launcher, number, status):
    folder = tmp_path / "sweep"
    words = pretrain(world, "steps=400", "eval_every=400", "seed=0,1,2,3", f"hydra.sweep.dir={folder}", *launcher)
    process = start(["-m", *words], start_new_session=True)
    until_trained(folder / "0", process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # Ctrl-C reaches all
    told = process.communicate()[0]
    assert process.returncode == status and "Traceback" not in told, told
    assert "ending the jobs, each with its checkpoint" in told and (folder / "0" / "checkpoints" / "last").exists()
    time.sleep(1)
    assert not any(runs_folder.holder(path.parent) for path in folder.glob("*/.lock"))
    again = start(["pretrain", f"resume={folder}"])
    told = again.communicate()[0]
    assert again.returncode == 0, told
    assert [result(folder / str(job))["steps"] for job in range(4)] == [400] * 4
    assert "resumed" in record.environment(folder / "0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_ends_the_sweep_with_one_message(world, tmp_path):
    folder = tmp_path / "sweep"
    words = ["-m", *pretrain(world, "steps=400", "eval_every=400", "seed=0,1", f"hydra.sweep.dir={folder}", *JOBLIB)]
    process = start(words)
    os.kill(until_trained(folder / "0", process), signal.SIGKILL)
    told = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in told, told
    assert "TerminatedWorkerError" in told and f"resume={folder} goes on" in told


SLURM = {  # as much of Slurm as submitit asks for, on one machine: an array, its states, and back into the queue
    "sbatch": """
        import os, pathlib, re, subprocess, sys
        script = pathlib.Path(sys.argv[1]).read_text()
        last = int(re.search(r"--array=0-(\\d+)", script)[1])
        for task in range(last + 1):
            apart = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen([sys.executable, f"{HERE}/node", sys.argv[1], str(task)], **apart)
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
            again = state.read_text() == "REQUEUED"
            if not again:
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
def test_jobs_in_slurms_queue_are_waited_for_and_a_preempted_one_goes_on(world, tmp_path, monkeypatch):
    """With programs that stand in for Slurm's: submitit's own code and ours are the real ones."""
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
    for number in (signal.SIGTERM, signal.SIGUSR2):  # as Slurm does it: a warning, then submitit's signal
        os.kill(job, number)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert len(record.environment(folder / "0")["resumed"]) == 1 and result(folder / "1")["steps"] == 400
    assert main(pretrain(world, *long, f"hydra.run.dir={tmp_path / 'whole'}")) == 0
    assert same(weights(folder / "0"), weights(tmp_path / "whole"))
