"""Hydra itself: its folders, its composition, its main, and what it raises as a short message.

The only other place that knows Hydra is overrides.py (its grammar).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt1cli.cli import overrides
from gpt1cli.config import commands, options, schema
from gpt1cli.config.schema import UserError, display

HYDRA = "1.3"  # whose rules of composition we follow

# hydra/launcher=... runs the jobs of a sweep elsewhere -> the extra of gpt1 that brings it
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")

NAMES_CODE = ("_target_", "()", "class")  # keys of Hydra's settings, and of the logging in them, that name what is run
OUR_CODE = ("hydra._internal.core_plugins.", "hydra_plugins.", "hydra.experimental.callbacks.")
LOGGED = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "colorlog.ColoredFormatter")
VARIABLES = "hydra.job.env_set"
REMEMBERED = 256  # compositions of a command


@dataclass(frozen=True)
class Source:
    """Where yaml files are looked for."""

    conf: str = str(options.folder())
    main: str | None = None  # --config-name; None: the command's own file
    extra: str | None = None  # --config-dir
    search: tuple[str, ...] = ()  # overrides of hydra.searchpath


class Composer:
    """Hydra over one set of folders, for one command."""

    def __init__(self, command: str, source: Source | None = None) -> None:
        self.command, self.source = command, source or Source()
        self.cls, self.groups = commands.COMMANDS[command].config, options.defaults(command)[0]
        version.setbase(HYDRA)
        setup_globals()
        path = create_config_search_path(self.source.conf)
        if self.source.extra:
            last = SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{self.source.extra}", anchor=last)
        self.loader = ConfigLoaderImpl(config_search_path=path)
        self.known: dict[str, list[str]] = {}  # group -> its options, once they were asked for
        self.loaded: dict[tuple[RunMode, *tuple[str, ...]], DictConfig] = {}  # the latest compositions, read-only

    def options(self, group: str) -> list[str]:
        """The options of a group, also those in a folder of the user's."""
        if group not in self.known:
            main, search = self.source.main or self.command, list(self.source.search)
            with told_by_hydra():
                self.known[group] = list(self.loader.get_group_options(group, ObjectType.CONFIG, main, search))
        return self.known[group]

    def check(self, words: list[str], sweep: bool = False, whole: bool = True) -> list[str]:
        """Overrides as typed -> in Hydra's grammar. UserError lists every mistake; where they are whole, also gaps."""
        groups = self.groups if whole else dict.fromkeys(self.groups, "")
        if issubclass(self.cls, commands.SweepsConfig | commands.SearchConfig):
            words = self._for_cells(words, sweep)
        defaults = options.defaults(self.command)[1]
        needed = [key for key in defaults if defaults[key] is None and self._wants(key)] if whole else []
        found = overrides.problems(words, self.cls, groups, needed, self.options, sweep)
        if found := [*found, *(self.launcher_problems(words, sweep) if whole else ())]:
            raise UserError("\n".join(found))
        return [overrides.translate(word, self.cls, sweep) for word in words]

    def launcher_problems(self, words: list[str], sweep: bool) -> Iterator[str]:
        """What is wrong with the words about Hydra's launcher, but for types, which Hydra tells."""
        about = launching(words)
        named = [word.removeprefix(LAUNCHER[0]) for word in about if word.startswith(LAUNCHER[0])]
        keys = [word.lstrip("+~").partition("=") for word in about if not word.startswith(LAUNCHER[0])]
        there = self.options("hydra/launcher") if about else []
        if about and not sweep:
            yield f"{display(' '.join(about))}: a launcher runs the jobs of a sweep: add -m"
        elif named and named[-1] not in there:
            extra, known = EXTRAS.get(named[-1]), ", ".join(there)
            known += "".join(
                f"; after pip install 'gpt1[{EXTRAS[name]}]' also {name}" for name in EXTRAS if name not in there
            )
            way = (
                f"it is not installed: pip install 'gpt1[{extra}]'" if extra else f"no such launcher; there are {known}"
            )
            yield f"hydra/launcher={display(named[-1])}: {way}"
        elif keys and not named:
            yield f"{keys[0][0]}: of which launcher? name hydra/launcher= too, one of {', '.join(EXTRAS)}"
        elif keys:
            node = self.load([f"{LAUNCHER[0]}{named[-1]}"], RunMode.MULTIRUN).hydra.launcher
            fields = [f"{LAUNCHER[1]}{name}" for name in node if name != "_target_"]
            for key, _, value in keys:
                if ".".join(key.split(".")[:3]) not in fields:
                    yield schema.unknown(key, fields)
                elif key.endswith((".tasks_per_node", ".nodes")) and value != "1":
                    yield f"{key}={display(value)}: a job is one task; runtime.devices=N shares it among N processes"

    def jobs(self, words: list[str]) -> list[list[str]]:
        """The overrides of every job of a sweep; none where it is not Hydra's own sweeper that makes them."""
        if any(word.startswith("hydra/sweeper") for word in words):
            return []
        parsed = [one for one in overrides.parse(words) if not one.is_hydra_override()]
        (found,) = BasicSweeper.split_arguments(parsed, None)
        return [list(job) for job in found]

    def _for_cells(self, words: list[str], sweep: bool) -> list[str]:
        """Of a study and a search: what only fine-tuning knows is gathered in `cells`, which every cell gets."""
        own, cells = overrides.gathered(words, self.cls, commands.FinetuneConfig)
        study = self.cls is commands.SweepsConfig
        if study and sweep and (several := [word for word in cells if "," in word and "[" not in word]):
            raise UserError(f"{display(' '.join(several))}: under -m a study takes several ablation= or study= alone")
        if plans := [word for word in cells if word.startswith(("plan.", "dry_run="))]:
            told = "; dry_run=true alone tells what a study takes" if study else ", not the many of a search"
            raise UserError(f"{' '.join(plans)}: plans one run{told}")
        if any(word.partition("=")[0] == "task" for word in cells):
            raise UserError("a study runs several tasks: name tasks=[...] instead of task=")
        if not study:  # whose runs tune on its own task
            cells += [word for word in own if word.lstrip("~+").startswith("task.") and ".prompt." not in word]
        if not cells:
            return own
        if any(word.startswith("cells=") for word in own):
            raise UserError(f"cells= and {', '.join(cells)}: name these inside of it, or leave cells= out")
        Composer("finetune", self.source).check(cells, whole=False)
        return [*own, f"cells=[{','.join(map(overrides.quote, cells))}]"]

    def _wants(self, key: str) -> bool:
        """Whether null is no value of the key."""
        annotation = schema.annotation_of(self.cls, key)
        return annotation is not None and bool(schema.check(annotation, None, key))

    def load(self, words: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """What Hydra composes from overrides in its grammar, unresolved, not to be changed. UserError where it cannot.

        A study composes each of its cells when it is checked and when it is run: what was composed is remembered.
        """
        if (mode, *words) not in self.loaded:
            if len(self.loaded) == REMEMBERED:
                del self.loaded[next(iter(self.loaded))]
            self.loaded[mode, *words] = self._load(words, mode)
        return self.loaded[mode, *words]

    def _load(self, words: list[str], mode: RunMode) -> DictConfig:
        with told_by_hydra(self.source.extra):
            words = [*self.source.search, *words]
            cfg = self.loader.load_configuration(self.source.main or self.command, words, mode)
            cfg.hydra.job.config_name = self.command  # run folders are named after the command
            with hydra_known(cfg):
                refuse_code(cfg, words)
            return cfg

    def sweep(self, words: list[str]) -> tuple[Path, str]:
        """The folder of a sweep, absolute, and the launcher of its jobs."""
        cfg = self.load(words, RunMode.MULTIRUN)
        with told_by_hydra(), hydra_known(cfg):
            return absolute(OmegaConf.select(cfg, "hydra.sweep.dir")), cfg.hydra.runtime.choices["hydra/launcher"]


def refuse_code(cfg: DictConfig, words: Iterable[str]) -> None:
    """UserError where a yaml would have Hydra run something that is neither Hydra's own nor of a launcher.

    Hydra calls whatever its settings name (callbacks, launchers, handlers of a log), and sets environment variables, as
    PATH and LD_PRELOAD are: yaml files may be a stranger's, and a task of theirs may bring such settings along.
    """
    rule = "gpt1 runs no code that a configuration names; leave it out"
    if found := [f"{key}={display(value)}: {rule}" for key, value in _code(cfg.hydra, "hydra")]:
        raise UserError("\n".join(found))
    named = [word.lstrip("+").partition("=")[0] for word in words if word.lstrip("+").startswith(VARIABLES)]
    for name in cfg.hydra.job.env_set:
        if not {VARIABLES, f"{VARIABLES}.{name}"} & set(named):
            raise UserError(f"{VARIABLES}.{name}: no yaml may set environment variables; name it on the command line")


def _code(node: DictConfig | ListConfig, key: str) -> Iterator[tuple[str, str]]:
    """Keys and values that name code which is not to be run, in a node and below it."""
    for name in node if isinstance(node, DictConfig) else range(len(node)):
        place = f"{key}.{name!s}"
        try:
            value = node[name]  # type: ignore[index]
        except OmegaConfBaseException:  # not known before the run: ${hydra.runtime.output_dir}
            value = "${...}"
        if OmegaConf.is_config(value):
            yield from _code(value, place)
        elif isinstance(value, str):
            allowed = value.startswith(OUR_CODE) if name == "_target_" else value in LOGGED
            if (name in NAMES_CODE and not allowed) or (value.startswith("ext://") and value[6:10] != "sys."):
                yield place, value


def launching(words: Iterable[str]) -> list[str]:
    """The words about Hydra's launcher: where the jobs of a sweep run."""
    return [word for word in words if word.lstrip("+~").startswith(LAUNCHER)]


def hydra_main(source: Source, command: str | None, words: list[str], job: Callable[[DictConfig], None]) -> None:
    """Let Hydra run the job, or print what its flags ask for; what it raises over the user's words is an UserError."""
    arguments, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    handlers, complains = logging.root.handlers[:], logging.raiseExceptions
    logging.raiseExceptions = False  # --info prints by logging, perhaps into a closed pipe
    extra = ["--config-dir", source.extra] if source.extra else []
    sys.argv = ["gpt1", *extra, *words]  # where Hydra looks for its arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print
    try:
        hydra.main(config_path=source.conf, config_name=source.main or command, version_base=HYDRA)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(short(error)) from error
    finally:
        sys.argv, logging.root.handlers[:], logging.raiseExceptions = arguments, handlers, complains
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextlib.contextmanager
def told_by_hydra(extra: str | None = None) -> Iterator[None]:
    """What Hydra and OmegaConf raise over a user's words, as a short UserError.

    Not all of it names a file: what cannot be read in `extra`, the folder of --config-dir, is named here.
    """
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:  # besides their own exceptions these are assertions, ValueError, yaml's and more
        told = short(error)
        named = [line for path, line in (_unreadable(extra) if extra else ()) if str(path) not in told]
        raise UserError("\n".join([told, *named])) from error


def _unreadable(folder: str) -> Iterator[tuple[Path, str]]:
    """The yaml files below a folder that cannot be read, and why."""
    for path in sorted(Path(folder).rglob("*.yaml")):
        try:
            OmegaConf.load(path)
        except Exception as error:  # whatever PyYAML's constructors stumble over
            yield path, f"{path} is no readable YAML: {display(' '.join(str(error).split()))}"


def short(error: BaseException) -> str:
    """The first lines of an exception of Hydra's and of its cause, without the advice and the search path."""
    lines = f"{error}\n{error.__cause__ or ''}".partition("Config search path")[0].splitlines()
    noise = ("See https:", "Set the environment", "object_type=", "reference_type=")
    kept = [display(line.strip()) for line in lines if line.strip() and not line.strip().startswith(noise)]
    return "\n".join(kept[:6]) or type(error).__name__


@contextlib.contextmanager
def hydra_known(cfg: DictConfig) -> Iterator[None]:
    """Make ${hydra:...} resolve before Hydra runs; inside a job it is the job's, and stays."""
    current = HydraConfig.instance()
    outside = current.cfg is None
    if outside:
        current.set_config(cfg)
    try:
        yield
    finally:
        if outside:
            current.cfg = None


def absolute(path: object) -> Path:
    """The path from the root, with ~ as the home folder."""
    return Path(os.path.abspath(os.path.expanduser(str(path))))
