"""gpt1 doctor: check the installation: what works, what is missing, how to fix it.

The parts are checked in the order of the report: machine, disk and cache, hub, tasks and corpora.

Longer than 300 lines: one function per check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import platform
import re
import shlex
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gpt1cli.config import options
from gpt1cli.config.commands import DoctorConfig
from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.schema import build
from gpt1cli.config.task import TaskConfig
from gpt1cli.config.version import __version__
from gpt1cli.data import hub
from gpt1cli.data.hub import Requirement
from gpt1cli.models import create
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.hf_config import REPOS
from gpt1cli.reporting import page
from gpt1cli.reporting.page import ReportTable
from gpt1cli.runs.console import abbreviate_number
from gpt1cli.runs.folder import finish_run
from gpt1cli.training.device import has_fast_bf16

USER_FILES = {"file": "task.train", "text": "corpus.path"}  # source -> the key that names the user's files
MIN_FREE_MEMORY = 4e9  # bytes: base in fp32 takes 16 x 117M for weights, gradients, optimizer state; activations
MIN_FREE_DISK = 5e9  # bytes: a run of base keeps two checkpoints of 1.4 GB and writes a third before it deletes one
TIMED_ROUNDS = 7  # of the matrix product
PRODUCT_SHAPE = 1024, 768, 3072  # tokens, width, inner width: the product that takes most of the time of base
DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Finding:
    """One checked thing: its state and, if that is a problem, how to fix it."""

    kind: str
    name: str
    state: str
    remedy: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)  # missing file or data set -> reason


def needs(config: DoctorConfig) -> list[Requirement]:
    """Require nothing: the command itself finds out what is missing."""
    return []


def run(config: DoctorConfig, folder: Path) -> None:
    """Check the parts of what= -> one table each -> number of problems -> result.json."""
    hub_error = hub.connection_error() if config.hub is None and {"hub", "tasks"} & {*config.what} else None
    checks = {
        "machine": lambda: check_machine(),
        "disk": lambda: check_disk(config.out, config.cache),
        "hub": lambda: [check_hub(config.hub, hub_error)],
        "tasks": lambda: check_data(config, hub_error),
    }
    titles = {"machine": "This machine", "disk": "Disk and cache", "hub": "The hub", "tasks": "Tasks and corpora"}
    findings: list[Finding] = []
    tables: list[ReportTable] = []
    for part in checks:
        if part in config.what:
            part_findings = list(checks[part]())
            joint = "=" if part == "tasks" else " "  # these are options of the command line
            rows = [[f"{one.kind}{joint}{one.name}", one.state, one.remedy] for one in part_findings]
            tables.append(ReportTable(titles[part], ["what", "state", "how to fix it"], rows))
            tables[-1].show()
            findings += part_findings
    page.write_page(folder, "Check of the installation", tables)
    problems = sum(bool(one.remedy) for one in findings)
    print(
        f"{problems} of {len(findings)} checks need a fix: {folder / 'report.md'}" if problems else "no problems found"
    )
    summary = {"status": "finished", "command": "doctor", "name": config.name}
    finish_run(folder, {**summary, "found": [dataclasses.asdict(one) for one in findings]})


# --- machine ----------------------------------------------------------------------------------------------------------


def check_machine() -> Iterator[Finding]:
    """Check versions, devices, memory, and whether bf16 is faster than fp32."""
    yield from check_versions()
    yield check_cpu()
    yield from check_gpus()
    yield check_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield check_precision(has_fast_bf16(device), bf16_speedup(device))


def check_versions() -> Iterator[Finding]:
    """Check gpt1, Python, the packages that the metadata of gpt1 require, and the extras."""
    import importlib.metadata

    from packaging.requirements import Requirement as PackageRequirement

    yield Finding("version", "gpt1", __version__)
    yield Finding("version", "python", platform.python_version())
    try:
        requirements = [PackageRequirement(line) for line in importlib.metadata.requires("gpt1") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("version", "packages", "gpt1 is not installed, it runs from a folder", "pip install that folder")
        return
    extras: dict[str, bool] = {}
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        fits = bool(version) and requirement.specifier.contains(version, prereleases=True)
        if requirement.marker is None:
            remedy = "" if fits else f"pip install '{requirement}'"
            yield Finding("version", requirement.name, version or "missing", remedy)
        elif extra := re.search(r"extra == .(\w+)", str(requirement.marker)):
            extras[extra[1]] = extras.get(extra[1], True) and fits
    for name in sorted(extras.keys() - {"dev"}):
        yield Finding("extra", name, "installed" if extras[name] else f"not installed: pip install 'gpt1[{name}]'")


def check_cpu() -> Finding:
    """Check that torch starts no more threads than this process has cores."""
    usable, threads = usable_cores(), torch.get_num_threads()
    with contextlib.suppress(OSError):
        model_name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model_name[1] if model_name else platform.machine()
    state = f"{name}, {usable:g} of {os.cpu_count()} cores for this process, {threads} threads"
    return Finding("device", "cpu", state, f"runtime.threads={max(1, int(usable))}" if threads > usable else "")


def usable_cores() -> float:
    """Cores that this process may use: its CPU affinity, or the share of its container if that is smaller."""
    affinity = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (create.CGROUP / "cpu.max").read_text().split()
        return min(affinity, int(quota) / int(period))  # "max" is no number: no limit
    return affinity


def check_gpus() -> Iterator[Finding]:
    """List the CUDA devices; a GPU that torch cannot use is a problem."""
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        state = f"{gpu.name}, {abbreviate_number(gpu.total_memory)}B, compute capability {gpu.major}.{gpu.minor}"
        yield Finding("device", f"cuda:{number}", state)
    if not torch.cuda.is_available():
        has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        build_kind = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        state = f"present, but torch {torch.__version__} ({build_kind}) cannot use it" if has_gpu else "none"
        yield Finding("device", "cuda", state, "install torch for its driver: pytorch.org" if has_gpu else "")


def check_memory() -> Finding:
    """Check the main memory that is free for this process."""
    total, free = create.memory_sizes()
    state = f"{abbreviate_number(total)}B, {abbreviate_number(free)}B free"
    remedy = "a smaller model=, runtime.micro_batch=1, or end other programs" if free < MIN_FREE_MEMORY else ""
    return Finding("memory", "main", state, remedy)


def bf16_speedup(device: torch.device) -> float:
    """Measure how many times as fast a feed-forward product of base is in bf16 as in fp32; rounds alternate."""
    rows, width, inner = PRODUCT_SHAPE
    left, right = torch.randn(rows, width, device=device), torch.randn(width, inner, device=device)
    operands = {dtype: (left.to(dtype), right.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}

    def measure_seconds(dtype: torch.dtype) -> float:
        start_time = time.perf_counter()
        operands[dtype][0] @ operands[dtype][1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start_time

    ratios = [measure_seconds(torch.float32) / measure_seconds(torch.bfloat16) for _ in range(TIMED_ROUNDS + 1)]
    return statistics.median(ratios[1:])  # the first round warms up


def check_precision(auto_is_bf16: bool, speedup: float) -> Finding:
    """Check that runtime.precision=auto chooses the faster of bf16 and fp32 here. speedup: of bf16 over fp32."""
    state = f"auto is {'bf16' if auto_is_bf16 else 'fp32'}; bf16 products measured {speedup:.2f} times as fast as fp32"
    wrong = speedup < 0.9 if auto_is_bf16 else speedup > 1.1
    remedy = f"runtime.precision={'fp32' if auto_is_bf16 else 'bf16'}" if wrong else ""
    return Finding("precision", "bf16", state, remedy)


# --- disk and cache ---------------------------------------------------------------------------------------------------


def check_disk(out: str, cache: str) -> Iterator[Finding]:
    """Check space and permissions of the output and cache folders, and list what the cache holds and may lose."""
    yield check_folder("out", out)
    yield check_folder("cache", cache)
    cache_folder = Path(cache).expanduser()
    parts = {"corpora": "corpora", "tokenizers": "tokenizers", "datasets": "data sets", "hub": "files of the hub"}
    for folder, name in parts.items():
        entries = [path for path in (cache_folder / folder).glob("[!.]*") if path.is_dir()]
        if entries:
            yield Finding("cache", name, f"{len(entries)}, {abbreviate_number(total_bytes(cache_folder / folder))}B")
    leftovers = {
        "files of killed processes": abandoned_files(cache_folder),
        "old states of hub=DIR": outdated_datasets(cache_folder),
    }
    for name, paths in leftovers.items():
        if paths:
            remedy = "to free the space: rm -r " + " ".join(shlex.quote(str(path)) for path in paths)
            size = abbreviate_number(sum(map(total_bytes, paths)))
            yield Finding("cache", name, f"{len(paths)}, {size}B", remedy)


def check_folder(name: str, folder: str) -> Finding:
    """Check that the folder, or its nearest existing parent, takes files and locks and has enough space."""
    wanted = Path(folder).expanduser().absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        free = shutil.disk_usage(existing).free
        with tempfile.TemporaryFile(dir=existing) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                state = f"{wanted}: no file locks on this file system ({error.strerror})"
                return Finding(
                    "disk", name, state, f"never run two processes on one run folder, or {name}=DIR elsewhere"
                )
    except OSError as error:
        return Finding("disk", name, f"{wanted}: {error.strerror}", f"{name}=DIR, a folder that you may write to")
    state = f"{wanted}: {abbreviate_number(free)}B free"
    return Finding("disk", name, state, f"{name}=DIR on another disk" if free < MIN_FREE_DISK else "")


def abandoned_files(cache: Path) -> list[Path]:
    """List unfinished files of killed processes, a day old or more; younger ones may be in use or resumed."""
    folders = [path for kind in ("corpora", "tokenizers") for path in (cache / kind).glob(".*") if path.is_dir()]
    partial_files = [path for kind in ("datasets", "hub") for path in (cache / kind).rglob("*.incomplete*")]
    return sorted(path for path in [*folders, *partial_files] if path.stat().st_mtime < time.time() - DAY)


def outdated_datasets(cache: Path) -> list[Path]:
    """List all but the newest state of each data set read from hub=DIR; gpt1 prepares them again when needed."""

    def base_name(path: Path) -> str:
        return re.sub(r"-[0-9a-f]{16}$", "", path.name)

    prepared = sorted((path for path in (cache / "datasets").glob("*") if base_name(path) != path.name), key=base_name)
    groups = [sorted(same, key=lambda path: path.stat().st_mtime) for _, same in itertools.groupby(prepared, base_name)]
    return [path for group in groups for path in group[:-1]]


def total_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if not file.is_symlink() and file.is_file()]
    return sum(file.stat().st_size for file in files)


# --- hub --------------------------------------------------------------------------------------------------------------


def check_hub(folder: str | None, hub_error: str | None) -> Finding:
    """Check that the Hugging Face hub answers (hub_error: why not), or list the repositories in hub=DIR."""
    if folder is None:
        remedy = "the network, HF_ENDPOINT=URL of a mirror, or hub=DIR" if hub_error else ""
        return Finding("hub", "network", hub_error or "answers", remedy)
    repos = sorted(f"{path.parent.name}/{path.name}" for path in Path(folder).glob("[!.]*/[!.]*") if path.is_dir())
    state = f"{len(repos)} repositories: {', '.join(repos)}" if repos else "no DIR/org/name in it"
    return Finding("hub", f"hub={folder}", state, "" if repos else hub.HUB_FOLDER_HINT)


# --- tasks and corpora ------------------------------------------------------------------------------------------------


def check_data(config: DoctorConfig, hub_error: str | None) -> Iterator[Finding]:
    """Check the data of every task and corpus in conf/, and the published models and tokenizers."""
    for kind, requirements in (("task", _task_requirements), ("corpus", _corpus_requirements)):
        for name in options.names(kind):
            if key := USER_FILES.get(options.values(kind, name)["source"]):
                yield Finding(kind, name, f"your own files: {key}=FILE")
            else:
                yield check_option(kind, name, requirements(name), config, hub_error)
    for name in REPOS:
        yield check_option("tokenizer", name, _tokenizer_requirements(name), config, hub_error)
        yield check_option("init", name, locate.weight_requirements(name), config, hub_error)


def check_option(
    kind: str, name: str, requirements: list[Requirement], config: DoctorConfig, hub_error: str | None
) -> Finding:
    """Check whether the data of an option is available, and if not how to get it."""
    missing = {one: reason for one in requirements if (reason := hub.missing_reason(one, config.hub, config.cache))}
    if not missing:
        return Finding(kind, name, "available")
    reasons = {f"{one.repo}{', ' + one.subset if one.subset else ''}": reason for one, reason in missing.items()}
    remedies = dict.fromkeys(remedy for one in missing for remedy in one.remedies)
    if config.hub is None and not hub_error and not remedies:  # data with a remedy of its own is not downloaded
        return Finding(kind, name, "on the hub: downloaded at first use", missing=reasons)
    general = f"put it there: {'; '.join(reasons)}" if config.hub else f"hub=DIR with {'; '.join(reasons)}"
    network = [] if remedies or config.hub else ["the network"]
    return Finding(kind, name, "missing", " or ".join([general, *network, *remedies]), reasons)


def _task_requirements(option: str) -> list[Requirement]:
    return hub.task_requirements(build(TaskConfig, options.values("task", option)))


def _tokenizer_requirements(option: str) -> list[Requirement]:
    return hub.tokenizer_requirements(build(TokenizerConfig, options.values("tokenizer", option)))


def _corpus_requirements(option: str) -> list[Requirement]:
    return hub.corpus_requirements(build(CorpusConfig, options.values("corpus", option)))
