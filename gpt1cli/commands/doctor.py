"""gpt1 doctor: what is at hand here, and the remedy for what is not."""

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
from gpt1cli.data.hub import Need
from gpt1cli.models import create
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.hf_config import REPOS
from gpt1cli.reporting import page
from gpt1cli.reporting.page import Table
from gpt1cli.runs.console import short
from gpt1cli.runs.folder import finish
from gpt1cli.training.device import has_fast_bf16

OWN = {"file": "task.train", "text": "corpus.path"}  # source -> the key that names the user's files
LITTLE_MEMORY = 4e9  # bytes: pretraining base in fp32 holds 16 x 117M of weights, gradients, moments, and activations
LITTLE_DISK = 5e9  # bytes: a run of base keeps two checkpoints of 1.4 GB, and writes a third before one of them goes
ROUNDS = 7  # of measuring arithmetic
SHAPE = 1024, 768, 3072  # rows of tokens, width, inner width: the product that base spends most of its time on
DAY = 86400.0  # seconds


def needs(config: DoctorConfig) -> list[Need]:
    """Nothing: to find out what is missing is the command's work."""
    return []


def run(config: DoctorConfig, folder: Path) -> None:
    """Look at what was asked for -> a table of each -> how many problems there are -> result.json."""
    silence = hub.unreachable() if config.hub is None and {"hub", "tasks"} & {*config.what} else None
    looks = {
        "machine": lambda: machine(),
        "disk": lambda: disk(config.out, config.cache),
        "hub": lambda: [reach(config.hub, silence)],
        "tasks": lambda: data(config, silence),
    }
    titles = {"machine": "This machine", "disk": "Disk and cache", "hub": "The hub", "tasks": "Tasks and corpora"}
    found: list[Finding] = []
    tables: list[Table] = []
    for part in looks:
        if part in config.what:
            seen = list(looks[part]())
            joint = "=" if part == "tasks" else " "  # these are options to name
            rows = [[f"{one.kind}{joint}{one.name}", one.state, one.remedy] for one in seen]
            tables.append(Table(titles[part], ["what", "state", "remedy"], rows))
            tables[-1].show()
            found += seen
    page.write(folder, "What is at hand here", tables)
    problems = sum(bool(one.remedy) for one in found)
    print(f"{problems} of {len(found)} findings have a remedy: {folder / 'report.md'}" if problems else "all is well")
    about = {"status": "finished", "command": "doctor", "name": config.name}
    finish(folder, {**about, "found": [dataclasses.asdict(one) for one in found]})


def data(config: DoctorConfig, silence: str | None) -> Iterator[Finding]:
    """Every task and corpus of conf/ and the published model."""
    for kind, needs in (("task", _task_needs), ("corpus", _corpus_needs)):
        for name in options.names(kind):
            if key := OWN.get(options.values(kind, name)["source"]):
                yield Finding(kind, name, f"of files of your own: {key}=FILE")
            else:
                yield diagnosis(kind, name, needs(name), config, silence)
    for name in REPOS:
        yield diagnosis("tokenizer", name, _tokenizer_needs(name), config, silence)
        yield diagnosis("init", name, locate.weights_needs(name), config, silence)


def diagnosis(kind: str, name: str, needs: list[Need], config: DoctorConfig, silence: str | None) -> Finding:
    """What is wrong with the data of one option, if anything, and the ways out of it."""
    missing = {need: reason for need in needs if (reason := hub.amiss(need, config.hub, config.cache))}
    if not missing:
        return Finding(kind, name, "at hand")
    names = {f"{need.repo}{', ' + need.subset if need.subset else ''}": reason for need, reason in missing.items()}
    ways = dict.fromkeys(way for need in missing for way in need.ways_out)
    if config.hub is None and not silence and not ways:  # what has ways of its own is not simply fetched
        return Finding(kind, name, "on the hub: fetched at its first use", missing=names)
    general = f"put it there: {'; '.join(names)}" if config.hub else f"hub=DIR with {'; '.join(names)}"
    others = [] if ways or config.hub else ["the network"]
    return Finding(kind, name, "missing", " or ".join([general, *others, *ways]), names)


def _task_needs(option: str) -> list[Need]:
    return hub.task_needs(build(TaskConfig, options.values("task", option)))


def _tokenizer_needs(option: str) -> list[Need]:
    return hub.tokenizer_needs(build(TokenizerConfig, options.values("tokenizer", option)))


def _corpus_needs(option: str) -> list[Need]:
    return hub.corpus_needs(build(CorpusConfig, options.values("corpus", option)))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and where that is a problem the remedy."""

    kind: str
    name: str
    state: str
    remedy: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)  # what is not at hand -> why


def machine() -> Iterator[Finding]:
    """Versions, devices, memory, and whether bf16 is faster than fp32 here."""
    yield from versions()
    yield processor()
    yield from accelerators()
    yield memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield precision(has_fast_bf16(device), bf16_gain(device))


def versions() -> Iterator[Finding]:
    """gpt1, Python and what gpt1 requires, by the metadata of what is installed; which extras are there."""
    import importlib.metadata

    from packaging.requirements import Requirement

    yield Finding("version", "gpt1", __version__)
    yield Finding("version", "python", platform.python_version())
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("gpt1") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("version", "packages", "gpt1 is not installed, it runs from a folder", "pip install that folder")
        return
    extras: dict[str, bool] = {}
    for one in required:
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        fits = bool(found) and one.specifier.contains(found, prereleases=True)
        if one.marker is None:
            yield Finding("version", one.name, found or "missing", "" if fits else f"pip install '{one}'")
        elif extra := re.search(r"extra == .(\w+)", str(one.marker)):
            extras[extra[1]] = extras.get(extra[1], True) and fits
    for name in sorted(extras.keys() - {"dev"}):
        yield Finding("extra", name, "installed" if extras[name] else f"not installed: pip install 'gpt1[{name}]'")


def processor() -> Finding:
    """The CPU, the cores that this process may use, and the threads that torch starts."""
    usable, threads = cores(), torch.get_num_threads()
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = named[1] if named else platform.machine()
    state = f"{name}, {usable:g} of {os.cpu_count()} cores for this process, {threads} threads"
    return Finding("device", "cpu", state, f"runtime.threads={max(1, int(usable))}" if threads > usable else "")


def cores() -> float:
    """Cores that this process may use: those it is bound to, or the share that a container gives it."""
    bound = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (create.CGROUP / "cpu.max").read_text().split()
        return min(bound, int(quota) / int(period))  # "max" is no number: no limit
    return bound


def accelerators() -> Iterator[Finding]:
    """Every CUDA device; a GPU that torch does not see is a problem."""
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        state = f"{found.name}, {short(found.total_memory)}B, compute capability {found.major}.{found.minor}"
        yield Finding("device", f"cuda:{number}", state)
    if not torch.cuda.is_available():
        there = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        state = f"there, but torch {torch.__version__} ({built}) does not see it" if there else "none"
        yield Finding("device", "cuda", state, "a build of torch for its driver: pytorch.org" if there else "")


def memory() -> Finding:
    """Main memory, and what of it is free for this process."""
    total, free = create.sizes_of_memory()
    state = f"{short(total)}B, {short(free)}B of it free"
    remedy = "a smaller model=, runtime.micro_batch=1, or end what else runs" if free < LITTLE_MEMORY else ""
    return Finding("memory", "main", state, remedy)


def bf16_gain(device: torch.device) -> float:
    """How many times as fast a product of base's feed-forward layer is in bf16 as in fp32, measured in turn."""
    rows, width, inner = SHAPE
    left, right = torch.randn(rows, width, device=device), torch.randn(width, inner, device=device)
    operands = {kind: (left.to(kind), right.to(kind)) for kind in (torch.float32, torch.bfloat16)}

    def seconds(kind: torch.dtype) -> float:
        began = time.perf_counter()
        operands[kind][0] @ operands[kind][1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    rounds = [seconds(torch.float32) / seconds(torch.bfloat16) for _ in range(ROUNDS + 1)]
    return statistics.median(rounds[1:])  # the first one sets up


def precision(chosen: bool, gain: float) -> Finding:
    """Whether what runtime.precision=auto chooses (bf16 or not) is the faster one."""
    state = f"auto is {'bf16' if chosen else 'fp32'}; bf16 products are {gain:.2f} times as fast as fp32 ones, measured"
    wrong = gain < 0.9 if chosen else gain > 1.1
    return Finding("precision", "bf16", state, f"runtime.precision={'fp32' if chosen else 'bf16'}" if wrong else "")


def disk(out: str, cache: str) -> Iterator[Finding]:
    """Room and rights where runs and the cache go; what the cache holds, and what of it nobody needs any more."""
    yield place("out", out)
    yield place("cache", cache)
    home = Path(cache).expanduser()
    kinds = {"corpora": "corpora", "tokenizers": "tokenizers", "datasets": "data sets", "hub": "files of the hub"}
    for folder, name in kinds.items():
        entries = [path for path in (home / folder).glob("[!.]*") if path.is_dir()]
        if entries:
            yield Finding("cache", name, f"{len(entries)}, {short(bytes_of(home / folder))}B")
    waste = {"left by killed processes": torn(home), "earlier states of hub=DIR": outdated(home)}
    for what, found in waste.items():
        if found:
            remedy = "may go: rm -r " + " ".join(shlex.quote(str(path)) for path in found)
            yield Finding("cache", what, f"{len(found)}, {short(sum(map(bytes_of, found)))}B", remedy)


def place(name: str, folder: str) -> Finding:
    """Whether the folder (or the nearest above it that exists) takes files and locks, and has room."""
    wanted = Path(folder).expanduser().absolute()
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                state = f"{wanted}: no locks on this file system ({error.strerror})"
                return Finding("disk", name, state, f"keep two processes out of one run, or {name}=DIR elsewhere")
    except OSError as error:
        return Finding("disk", name, f"{wanted}: {error.strerror}", f"{name}=DIR, a folder you may write to")
    state = f"{wanted}: {short(free)}B free"
    return Finding("disk", name, state, f"{name}=DIR on another disk" if free < LITTLE_DISK else "")


def torn(cache: Path) -> list[Path]:
    """What killed processes left; a day ago or more: an interrupted preparation goes on where it was."""
    asides = [path for kind in ("corpora", "tokenizers") for path in (cache / kind).glob(".*") if path.is_dir()]
    halves = [path for kind in ("datasets", "hub") for path in (cache / kind).rglob("*.incomplete*")]
    return sorted(path for path in [*asides, *halves] if path.stat().st_mtime < time.time() - DAY)


def outdated(cache: Path) -> list[Path]:
    """Of data sets that were read from a folder, all but the newest state: made again where wanted."""

    def of(path: Path) -> str:
        return re.sub(r"-[0-9a-f]{16}$", "", path.name)

    read = sorted((path for path in (cache / "datasets").glob("*") if of(path) != path.name), key=of)
    states = [sorted(same, key=lambda path: path.stat().st_mtime) for _, same in itertools.groupby(read, key=of)]
    return [path for same in states for path in same[:-1]]


def bytes_of(path: Path) -> int:
    """The size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if not file.is_symlink() and file.is_file()]
    return sum(file.stat().st_size for file in files)


def reach(folder: str | None, silence: str | None) -> Finding:
    """Whether the Hugging Face hub answers (`silence` says why not), or what the folder in its place holds."""
    if folder is None:
        remedy = "the network, HF_ENDPOINT=URL of a mirror, or hub=DIR" if silence else ""
        return Finding("hub", "network", silence or "answers", remedy)
    found = sorted(f"{path.parent.name}/{path.name}" for path in Path(folder).glob("[!.]*/[!.]*") if path.is_dir())
    state = f"{len(found)} repositories: {', '.join(found)}" if found else "no DIR/org/name in it"
    return Finding("hub", f"hub={folder}", state, "" if found else hub.HUB_FOLDER)
