"""The interface to Hydra: config folders, composition, its main function, and its errors as short messages.

Hydra's override grammar is handled in overrides.py.
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

HYDRA_VERSION = "1.3"  # its rules of composition apply

# hydra/launcher=NAME, which runs the jobs of a sweep elsewhere -> the extra of gpt1 that installs it
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
LAUNCHER_PREFIXES = ("hydra/launcher=", "hydra.launcher.")

CODE_KEYS = ("_target_", "()", "class")  # keys of Hydra's settings and of its logging that name code to run
ALLOWED_CODE = ("hydra._internal.core_plugins.", "hydra_plugins.", "hydra.experimental.callbacks.")
ALLOWED_LOG_CLASSES = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "colorlog.ColoredFormatter",
)
ENV_SET = "hydra.job.env_set"
CACHE_SIZE = 256  # compositions per command


@dataclass(frozen=True)
class ConfigSource:
    """The folders that yaml files are read from."""

    conf: str = str(options.folder())
    main: str | None = None  # --config-name; None: the command's own file
    extra: str | None = None  # --config-dir
    search: tuple[str, ...] = ()  # overrides of hydra.searchpath


class Composer:
    """Hydra's composition for one command and one set of folders."""

    def __init__(self, command: str, source: ConfigSource | None = None) -> None:
        self.command, self.source = command, source or ConfigSource()
        self.cls, self.groups = commands.COMMANDS[command].config, options.defaults(command)[0]
        version.setbase(HYDRA_VERSION)
        setup_globals()
        path = create_config_search_path(self.source.conf)
        if self.source.extra:
            last = SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{self.source.extra}", anchor=last)
        self.loader = ConfigLoaderImpl(config_search_path=path)
        self.option_cache: dict[str, list[str]] = {}  # group -> its options
        self.config_cache: dict[tuple[RunMode, *tuple[str, ...]], DictConfig] = {}  # the latest compositions; read-only

    def options(self, group: str) -> list[str]:
        """Return the options of a group, including those in a user's folder."""
        if group not in self.option_cache:
            main, search = self.source.main or self.command, list(self.source.search)
            with hydra_errors():
                self.option_cache[group] = list(self.loader.get_group_options(group, ObjectType.CONFIG, main, search))
        return self.option_cache[group]

    def check_overrides(self, words: list[str], sweep: bool = False, complete: bool = True) -> list[str]:
        """Translate overrides as typed into Hydra's grammar. Raises UserError that lists every mistake.

        `complete`: also report needed keys and groups that are missing.
        """
        groups = self.groups if complete else dict.fromkeys(self.groups, "")
        if issubclass(self.cls, commands.SweepsConfig | commands.SearchConfig):
            words = self._move_to_cells(words, sweep)
        defaults = options.defaults(self.command)[1]
        needed = [key for key in defaults if defaults[key] is None and self._needs_value(key)] if complete else []
        problems = overrides.override_problems(words, self.cls, groups, needed, self.options, sweep)
        if problems := [*problems, *(self.launcher_problems(words, sweep) if complete else ())]:
            raise UserError("\n".join(problems))
        return [overrides.translate_override(word, self.cls, sweep) for word in words]

    def launcher_problems(self, words: list[str], sweep: bool) -> Iterator[str]:
        """Yield the mistakes in the overrides of Hydra's launcher, except wrong types, which Hydra reports."""
        related = launcher_overrides(words)
        launchers = [
            word.removeprefix(LAUNCHER_PREFIXES[0]) for word in related if word.startswith(LAUNCHER_PREFIXES[0])
        ]
        keys = [word.lstrip("+~").partition("=") for word in related if not word.startswith(LAUNCHER_PREFIXES[0])]
        installed = self.options("hydra/launcher") if related else []
        if related and not sweep:
            yield f"{display(' '.join(related))}: a launcher runs the jobs of a sweep: add -m"
        elif launchers and launchers[-1] not in installed:
            extra, known = LAUNCHER_EXTRAS.get(launchers[-1]), ", ".join(installed)
            known += "".join(
                f"; after pip install 'gpt1[{LAUNCHER_EXTRAS[name]}]' also {name}"
                for name in LAUNCHER_EXTRAS
                if name not in installed
            )
            reason = f"not installed: pip install 'gpt1[{extra}]'" if extra else f"no such launcher; known: {known}"
            yield f"hydra/launcher={display(launchers[-1])}: {reason}"
        elif keys and not launchers:
            yield f"{keys[0][0]} needs hydra/launcher=NAME too, one of {', '.join(LAUNCHER_EXTRAS)}"
        elif keys:
            node = self.load([f"{LAUNCHER_PREFIXES[0]}{launchers[-1]}"], RunMode.MULTIRUN).hydra.launcher
            fields = [f"{LAUNCHER_PREFIXES[1]}{name}" for name in node if name != "_target_"]
            for key, _, value in keys:
                if ".".join(key.split(".")[:3]) not in fields:
                    yield schema.unknown_name(key, fields)
                elif key.endswith((".tasks_per_node", ".nodes")) and value != "1":
                    yield f"{key}={display(value)}: only 1 is possible; runtime.devices=N runs a job in N processes"

    def list_jobs(self, words: list[str]) -> list[list[str]]:
        """Return the overrides of every job of a sweep; an empty list if the sweeper is not Hydra's basic one."""
        if any(word.startswith("hydra/sweeper") for word in words):
            return []
        parsed = [override for override in overrides.parse_overrides(words) if not override.is_hydra_override()]
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        return [list(job) for job in jobs]

    def _move_to_cells(self, words: list[str], sweep: bool) -> list[str]:
        """For a study or a search: move the overrides that only gpt1 finetune knows into `cells`."""
        own, cells = overrides.split_study_overrides(words, self.cls, commands.FinetuneConfig)
        study = self.cls is commands.SweepsConfig
        if study and sweep and (swept := [word for word in cells if "," in word and "[" not in word]):
            raise UserError(
                f"{display(' '.join(swept))}: with -m a study accepts several values of ablation= or study= only"
            )
        if plans := [word for word in cells if word.startswith(("plan.", "dry_run="))]:
            reason = "; for a study use dry_run=true alone" if study else ", and a search has many"
            raise UserError(f"{' '.join(plans)}: this estimates one run{reason}")
        if any(word.partition("=")[0] == "task" for word in cells):
            raise UserError("a study runs several tasks: use tasks=[...] instead of task=")
        if not study:  # the runs of a search use its own task
            cells += [word for word in own if word.lstrip("~+").startswith("task.") and ".prompt." not in word]
        if not cells:
            return own
        if any(word.startswith("cells=") for word in own):
            raise UserError(f"cells= and {', '.join(cells)}: put these into cells=[...], or remove cells=")
        Composer("finetune", self.source).check_overrides(cells, complete=False)
        return [*own, f"cells=[{','.join(map(overrides.quote, cells))}]"]

    def _needs_value(self, key: str) -> bool:
        """Whether the key may not be null."""
        annotation = schema.annotation_of(self.cls, key)
        return annotation is not None and bool(schema.value_problems(annotation, None, key))

    def load(self, words: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Return Hydra's unresolved, read-only composition of overrides in its grammar. Raises UserError if it fails.

        Compositions are cached: a study composes each cell twice, for the check and for the run.
        """
        if (mode, *words) not in self.config_cache:
            if len(self.config_cache) == CACHE_SIZE:
                del self.config_cache[next(iter(self.config_cache))]
            self.config_cache[mode, *words] = self._load(words, mode)
        return self.config_cache[mode, *words]

    def _load(self, words: list[str], mode: RunMode) -> DictConfig:
        with hydra_errors(self.source.extra):
            words = [*self.source.search, *words]
            cfg = self.loader.load_configuration(self.source.main or self.command, words, mode)
            cfg.hydra.job.config_name = self.command  # run folders are named after the command
            with hydra_resolvers(cfg):
                refuse_code(cfg, words)
            return cfg

    def sweep_target(self, words: list[str]) -> tuple[Path, str]:
        """Return the absolute folder of a sweep and the launcher of its jobs."""
        cfg = self.load(words, RunMode.MULTIRUN)
        with hydra_errors(), hydra_resolvers(cfg):
            return absolute_path(OmegaConf.select(cfg, "hydra.sweep.dir")), cfg.hydra.runtime.choices["hydra/launcher"]


def refuse_code(cfg: DictConfig, words: Iterable[str]) -> None:
    """Raise UserError if a yaml makes Hydra run code other than Hydra's own or a launcher's.

    Hydra calls whatever its settings name (callbacks, launchers, log handlers), and sets environment variables, such as
    PATH and LD_PRELOAD. Yaml files may come from strangers, and a task's yaml may contain such settings.
    """
    rule = "gpt1 runs no code that a configuration names; remove it"
    if refused := [f"{key}={display(value)}: {rule}" for key, value in _forbidden_code(cfg.hydra, "hydra")]:
        raise UserError("\n".join(refused))
    typed = [word.lstrip("+").partition("=")[0] for word in words if word.lstrip("+").startswith(ENV_SET)]
    for name in cfg.hydra.job.env_set:
        if not {ENV_SET, f"{ENV_SET}.{name}"} & set(typed):
            raise UserError(f"{ENV_SET}.{name}: a yaml may not set environment variables; set it on the command line")


def _forbidden_code(node: DictConfig | ListConfig, key: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values below a node that name code which may not run."""
    for name in node if isinstance(node, DictConfig) else range(len(node)):
        child_key = f"{key}.{name!s}"
        try:
            value = node[name]  # type: ignore[index]
        except OmegaConfBaseException:  # unknown before the run: ${hydra.runtime.output_dir}
            value = "${...}"
        if OmegaConf.is_config(value):
            yield from _forbidden_code(value, child_key)
        elif isinstance(value, str):
            allowed = value.startswith(ALLOWED_CODE) if name == "_target_" else value in ALLOWED_LOG_CLASSES
            if (name in CODE_KEYS and not allowed) or (value.startswith("ext://") and value[6:10] != "sys."):
                yield child_key, value


def launcher_overrides(words: Iterable[str]) -> list[str]:
    """Return the overrides of Hydra's launcher."""
    return [word for word in words if word.lstrip("+~").startswith(LAUNCHER_PREFIXES)]


def run_hydra(source: ConfigSource, command: str | None, words: list[str], job: Callable[[DictConfig], None]) -> None:
    """Let Hydra run the job, or print what its flags ask for. Raises UserError for Hydra's own exceptions."""
    arguments, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    handlers, raises = logging.root.handlers[:], logging.raiseExceptions
    logging.raiseExceptions = False  # --info prints through logging, perhaps into a closed pipe
    extra = ["--config-dir", source.extra] if source.extra else []
    sys.argv = ["gpt1", *extra, *words]  # Hydra reads its arguments there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print
    try:
        hydra.main(config_path=source.conf, config_name=source.main or command, version_base=HYDRA_VERSION)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(short_message(error)) from error
    finally:
        sys.argv, logging.root.handlers[:], logging.raiseExceptions = arguments, handlers, raises
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextlib.contextmanager
def hydra_errors(extra: str | None = None) -> Iterator[None]:
    """Convert exceptions of Hydra and OmegaConf into a short UserError.

    Their messages may not name a file, so unreadable files in `extra`, the folder of --config-dir, are added.
    """
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:  # besides their own exceptions: assertions, ValueError, yaml errors and others
        message = short_message(error)
        unreadable = [line for path, line in (_unreadable_files(extra) if extra else ()) if str(path) not in message]
        raise UserError("\n".join([message, *unreadable])) from error


def _unreadable_files(folder: str) -> Iterator[tuple[Path, str]]:
    """Yield the yaml files below a folder that cannot be read, and a message for each."""
    for path in sorted(Path(folder).rglob("*.yaml")):
        try:
            OmegaConf.load(path)
        except Exception as error:  # PyYAML's constructors raise many types
            yield path, f"{path} is not valid YAML: {display(' '.join(str(error).split()))}"


def short_message(error: BaseException) -> str:
    """Return the first lines of a Hydra exception and of its cause, without advice and search path."""
    lines = f"{error}\n{error.__cause__ or ''}".partition("Config search path")[0].splitlines()
    noise = ("See https:", "Set the environment", "object_type=", "reference_type=")
    kept = [display(line.strip()) for line in lines if line.strip() and not line.strip().startswith(noise)]
    return "\n".join(kept[:6]) or type(error).__name__


@contextlib.contextmanager
def hydra_resolvers(cfg: DictConfig) -> Iterator[None]:
    """Make ${hydra:...} resolve before Hydra runs; inside a job the job's own configuration stays."""
    current = HydraConfig.instance()
    is_outside_job = current.cfg is None
    if is_outside_job:
        current.set_config(cfg)
    try:
        yield
    finally:
        if is_outside_job:
            current.cfg = None


def absolute_path(path: object) -> Path:
    """Return the absolute path, with ~ expanded."""
    return Path(os.path.abspath(os.path.expanduser(str(path))))
