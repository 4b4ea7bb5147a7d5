"""Overrides -> one typed configuration: Hydra composes, then `ablation`, `config`, `resume` and `init` have their say.

All of that happens on the unresolved mapping, so that an interpolation (lr: ${model.finetuning.lr}) follows the model
that the run really gets. Behind `compose` nobody sees OmegaConf again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpt1cli.cli import overrides
from gpt1cli.cli.hydra_loader import Composer, absolute, hydra_known, told_by_hydra
from gpt1cli.cli.overrides import FOUND, NO_PATHS, PATHS
from gpt1cli.config import commands, schema
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, display, flat, unwrap
from gpt1cli.config.study import AblationConfig
from gpt1cli.config.training import FewConfig
from gpt1cli.pretrained import locate
from gpt1cli.runs import record
from gpt1cli.runs.files import read_config
from gpt1cli.runs.folder import unused
from gpt1cli.runs.record import environment

BROUGHT = {"model", "tokenizer", "init", "epochs"}  # by a task of the demo, for the commands that have these keys
FREE = ("runtime", "logger", "cache", "resume", "config")  # what may differ of a resumed run, besides more steps


@dataclass(frozen=True)
class Composed:
    """A run's configuration, and its folder (absolute; of a resumed run: its own)."""

    config: commands.RunConfig
    folder: Path
    resumed: bool


def implied(composer: Composer, words: list[str]) -> list[str]:
    """The groups of a stored configuration that the words do not name, as overrides: Hydra has to know them too."""
    nodes = (_stored(composer, words) or ("", {}))[1]
    named = _named(words)
    if (run := _run_of(named)) and _takes_a_runs_task(composer, named):
        nodes = {"task": _trained_on(run)}
    chosen = {g: nodes[g].get("name") for g in composer.groups if g not in named and isinstance(nodes.get(g), dict)}
    return [f"{group}={option}" for group, option in chosen.items() if option in composer.options(group)]


def compose(composer: Composer, words: list[str]) -> Composed:
    """The configuration of a run from overrides in Hydra's grammar. UserError lists what is wrong with it."""
    stored, named = _stored(composer, words), _named(words)
    if composer.cls is commands.EvaluateConfig and "task" not in named and _run_of(named) is None:
        raise UserError("run is needed: folder of a fine-tuned run, or runs=[RUN,...] for an ensemble of several")
    words = [*implied(composer, words), *words]
    cfg = composer.load(words)
    length, taken_away = named, {}
    if ablated := _ablated(composer, cfg):  # taken away last, whatever the user said
        taken_away = _named(ablated)
        length = taken_away if taken_away.keys() & {"steps", "epochs"} else named
        named = named | taken_away
        cfg = composer.load([*words, *ablated])
    raw = typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    settings = raw.pop("hydra")
    if stored:
        raw = _start_from(stored[1], raw, named, composer)
    if "few" in raw and raw.get("shots") is not None and not (stored and _get(stored[1], "shots") is not None):
        length = length | _bring_few(raw, named)
    if length.get("steps") is not None:
        raw["epochs"] = None
    elif length.get("epochs") is not None:
        raw["steps"] = None
    resumed = named.get("resume") is not None
    for key in BROUGHT:
        if schema.annotation_of(composer.cls, key) is None:
            raw.pop(key, None)
    if {"init", "model", "tokenizer"} <= raw.keys() and not resumed:
        _follow_init(raw, named, bool(stored), replaced=taken_away.get("model.architecture") == "lstm")
    if (run := _run_of(named)) and _takes_a_runs_task(composer, named):
        _follow_run(raw, named, run)
    if {"prompt", "task"} <= raw.keys() and named.get("prompt") is not None:
        _take_prompt(raw, named)
    with _told_of(stored):
        _check_groups(composer, raw)
    with told_by_hydra(), hydra_known(cfg):
        tree = OmegaConf.create({**raw, "hydra": settings})
        data = {key: _plain(tree, key) if key != "hydra" else raw[key] for key in raw}  # a stored one is an unknown key
        folder = absolute(named["resume"] if resumed else OmegaConf.select(tree, "hydra.run.dir"))
    if not resumed and not any(word.lstrip("+").startswith("hydra.run.dir=") for word in words):
        folder = unused(folder)
    for key in PATHS:
        if value := _get(data, key):
            _put(data, key, _at_home(value))
    for key in FOUND:
        value = _get(data, key)
        if value and isinstance(value, str) and (key, value) not in NO_PATHS:
            _put(data, key, os.path.abspath(value))
    with _told_of(stored):
        built = schema.build(composer.cls, data)
    if stored and resumed:
        _refuse_changes(stored[1], dataclasses.asdict(built), named)
    return Composed(built, folder, resumed)


# --- stored configurations --------------------------------------------------------------------------------------------


def _stored(composer: Composer, words: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Path and content of the configuration that resume= or config= names, if one does."""
    named = _named(words)
    if run := named.get("resume"):
        path = os.path.join(os.path.expanduser(run), "config.yaml")
        if not os.path.isfile(path):
            found = "no run has begun in that folder" if os.path.isdir(os.path.dirname(path)) else "no such folder"
            raise UserError(f"resume={display(run)}: {found}; a run folder holds a config.yaml")
    elif file := named.get("config"):
        path = os.path.expanduser(file)
        path = os.path.join(path, "config.yaml") if os.path.isdir(path) else path
    else:
        return None
    command = environment(Path(path).parent).get("command", composer.command)
    if command != composer.command:
        raise UserError(f"{path} is the configuration of gpt1 {display(command)}, this is gpt1 {composer.command}")
    return path, read_config(path)


@contextlib.contextmanager
def _told_of(stored: tuple[str, dict[str, Any]] | None) -> Iterator[None]:
    """What is wrong with a configuration, told of the file that it comes from, if it does; a newer gpt1 may know it."""
    try:
        yield
    except UserError as error:
        if stored is None:
            raise
        newer = record.newer(Path(stored[0]).parent)
        raise UserError(f"{stored[0]}, with what was named besides:\n{error}{newer}") from None


def _start_from(stored: dict[str, Any], raw: dict[str, Any], named: Mapping[str, Any], composer: Composer) -> dict:
    """The stored configuration with what was named on top: a group replaces its node, a value its value."""
    taken_away = _get(stored, "ablation.overrides")
    if taken_away and "ablation" in named and _get(raw, "ablation.overrides") != taken_away:
        raise UserError(
            f"ablation={named['ablation']}: the stored configuration is that of an ablation already, "
            f"{display(_get(stored, 'ablation.name'))}, which cannot be taken back; start from a run without it"
        )
    merged = _overlay(composer.cls, raw, overrides.seal(stored))
    _put_named(merged, raw, named)
    if "cells" in named and named.get("resume") is None:
        merged["cells"] = [*_get(overrides.seal(stored), "cells"), *raw["cells"]]  # of two for one key the later counts
    renamed = any(group in named and _get(stored, f"{group}.name") == stored.get("name") for group in composer.groups)
    if renamed and "name" not in named:  # the run was named after its task or corpus, and this is another one
        merged["name"] = raw["name"]
    return merged


def _overlay(cls: type, base: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the stored values; what an older gpt1 did not store keeps its default."""
    merged = dict(base)
    fields = schema.fields_of(cls)
    for name, value in stored.items():
        inner, below = unwrap(fields.get(name)), merged.get(name)
        if dataclasses.is_dataclass(inner) and isinstance(value, dict) and isinstance(below, dict):
            value = _overlay(typing.cast(type, inner), below, value)
        merged[name] = value
    return merged


def _refuse_changes(stored: dict[str, Any], given: dict[str, Any], named: Mapping[str, Any]) -> None:
    """UserError lists what was named differently from the run that is resumed."""
    before, after = dict(flat(stored)), dict(flat(given))
    groups = [key for key in named if f"{key}.name" in before and key not in FREE]
    other = [key for key in groups if before[f"{key}.name"] != after.get(f"{key}.name")]
    changed = [f"  {group}={named[group]}: the run has {display(before[f'{group}.name'])}" for group in other]
    for key in before | after:
        parts, old, new = key.split("."), before.get(key), after.get(key)
        was_named = any(".".join(parts[:n]) in named for n in range(1, len(parts) + 1))
        grown = key == "steps" and isinstance(new, int) and (old is None or new > old)  # None: it counted epochs
        if was_named and parts[0] not in (*FREE, *other) and not grown and new != old:
            changed.append(f"  {key}={display(new)}: the run has {display(old)}")
    if changed:
        rule = "goes on with the run's own configuration; only runtime.*, logger, cache and larger steps may differ:"
        raise UserError("\n".join([f"resume={display(named['resume'])} {rule}", *changed]))


def _bring_few(raw: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Put the recipe for few examples where nothing else was named; what has been put, by its keys."""
    brought = {FewConfig.PLACES.get(name, name): value for name, value in raw["few"].items()}
    if "epochs" in named:  # which says how long, as steps do
        del brought["steps"]
    brought = {key: value for key, value in brought.items() if not {key, key.partition(".")[0]} & named.keys()}
    for key, value in brought.items():
        _put(raw, key, value)
    return brought


# --- init -------------------------------------------------------------------------------------------------------------


def _follow_init(raw: dict[str, Any], named: Mapping[str, Any], stored: bool, replaced: bool) -> None:
    """Take the model and the tokenizer of init, with the user's values on top. UserError where those contradict it.

    Where an ablation has `replaced` the Transformer by an LSTM, init's size and tokenizer are kept, and the weights are
    those of an LSTM that was pretrained so, or fresh.
    """
    with told_by_hydra():
        init = _plain(OmegaConf.create(raw), "init")
    if init == "none" or not isinstance(init, str) or not init:
        return
    known = locate.identity(init)
    if replaced and known["model"]["architecture"] == "transformer":
        known["model"] = dataclasses.asdict(schema.build(ModelConfig, known["model"]).as_lstm())
        with told_by_hydra():
            tree = OmegaConf.create(raw)
            asked, out = _plain(tree, "init_lstm"), str(absolute(_plain(tree, "out")))
        found = locate.lstm_for(known, init, asked, out)
        raw |= {"init": overrides.seal(found)} if found else {"pretrained": False}
    wrong = []
    fixed = {"model": ModelConfig.SHAPES[known["model"]["architecture"]], "tokenizer": locate.TOKENIZER}
    for group, identity in fixed.items():
        if group not in named and not (stored and "init" not in named):
            values = {key: _get(raw, key) for key in named if key.startswith(f"{group}.")}
            raw[group] = overrides.seal(known[group])
            for key, value in values.items():
                _put(raw, key, value)
        with told_by_hydra():
            node = schema.with_defaults(commands.GROUPS[group], _plain(OmegaConf.create(raw), group))
        differing = [name for name in identity if node.get(name) != known[group][name]]
        if differing:
            said = f"{group}={named[group]}" if group in named else group
            both = [f"{name}={display(node.get(name))}, not {display(known[group][name])}" for name in differing]
            wrong.append(f"{said} contradicts init={display(init)}: {'; '.join(both)}")
    if wrong:
        way = "leave it out: model and tokenizer come from init; or name init=none for fresh weights"
        raise UserError("\n".join([*wrong, way]))


# --- run --------------------------------------------------------------------------------------------------------------


def _run_of(named: Mapping[str, Any]) -> str | None:
    """The fine-tuned run that run= names, or the first one of runs=."""
    runs = named.get("runs")
    run = named.get("run") or (runs[0] if isinstance(runs, list) and runs else None)
    return run if isinstance(run, str) else None


def _takes_a_runs_task(composer: Composer, named: Mapping[str, Any]) -> bool:
    """Whether the command scores a fine-tuned run, on that run's own task where no other is named."""
    has = [schema.annotation_of(composer.cls, key) is not None for key in ("run", "task")]
    return all(has) and "task" not in named


def _trained_on(run: str) -> dict[str, Any]:
    """The task of the checkpoint that run= names. UserError where that is no fine-tuned one."""
    described = locate.described(locate.find(run, "run"))
    locate.task_of(described, run)
    return described["task"]


def _follow_run(raw: dict[str, Any], named: Mapping[str, Any], run: str) -> None:
    """Take the task of a fine-tuned run, with the user's values on top."""
    composed = dict(raw)
    raw["task"] = overrides.seal(_trained_on(run))
    _put_named(raw, composed, [key for key in named if key.startswith("task.")])


def _take_prompt(raw: dict[str, Any], named: Mapping[str, Any]) -> None:
    """Put the yaml that prompt= names in the place of the task's prompt, with the user's values on top."""
    path, composed = os.path.abspath(_at_home(named["prompt"])), dict(raw)
    if not os.path.isfile(path):
        raise UserError(f"prompt={display(named['prompt'])}: no such file; it takes a yaml with a template and words")
    raw["prompt"] = overrides.seal(path)
    raw["task"] = {**raw["task"], "prompt": overrides.seal(_written_prompt(path))}
    _put_named(raw, composed, [key for key in named if key.startswith("task.prompt.")])


def _written_prompt(path: str) -> dict[str, Any]:
    """The keys of a prompt's yaml, which may lie below `prompt:` as a task's yaml has them.

    UserError where it is no yaml, or where it is one that says something else than its writer thought.
    """
    try:
        written = read_config(Path(path))
    except UserError as error:
        raise UserError(f"{error}; a text that begins with a brace stands in quotes") from error
    if written.keys() == {"prompt"} and isinstance(written["prompt"], dict):
        written = written["prompt"]
    words = written.get("words")
    for label, word in words.items() if isinstance(words, dict) else ():
        if any(isinstance(one, bool) for one in (label, *(word if isinstance(word, list) else [word]))):
            raise UserError(f"{path}: words: YAML reads yes, no, on, off, true and false as truth values: quote them")
    return written


# --- nested mappings --------------------------------------------------------------------------------------------------


def _named(words: list[str]) -> dict[str, Any]:
    """Dotted key -> value of the overrides (a group: its option), those of Hydra's own settings left out."""
    named: dict[str, Any] = {}
    for override in overrides.parse(words):
        if not override.is_hydra_override() and not override.is_sweep_override():
            named |= flat({override.key_or_group: overrides.opened(override.value())})
    return named


def _get(data: Any, key: str) -> Any:
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _put_named(data: dict[str, Any], composed: Mapping[str, Any], named: Iterable[str]) -> None:
    """Put what Hydra made of the keys that were named into `data`; what it has no more was taken away there, too."""
    for key in sorted(named, key=lambda key: key.count(".")):
        parent, _, name = key.rpartition(".")
        if name in ((_get(composed, parent) if parent else composed) or ()):
            _put(data, key, _get(composed, key))
        elif isinstance(node := _get(data, parent), dict):  # ~task.splits.test
            node.pop(name, None)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        data[name] = dict(data[name]) if isinstance(data.get(name), dict) else {}
        data = data[name]
    data[last] = value


# --- OmegaConf --------------------------------------------------------------------------------------------------------


def _ablated(composer: Composer, cfg: DictConfig) -> list[str]:
    """The overrides of the ablation, in Hydra's grammar."""
    if unwrap(schema.annotation_of(composer.cls, "ablation")) is not AblationConfig:
        return []
    with told_by_hydra():
        words = [str(word) for word in _plain(cfg.ablation, "overrides")]
    try:
        return composer.check(words, whole=False)
    except UserError as error:
        raise UserError(f"the overrides of ablation={cfg.ablation.name} are at fault:\n{error}") from None


def _check_groups(composer: Composer, raw: Mapping[str, Any]) -> None:
    """UserError for keys of a group that are unknown or missing: what else is composed may interpolate them."""
    found = []
    for group in composer.groups:
        if isinstance(node := raw.get(group), dict) and group in commands.GROUPS:
            found += schema.key_problems(commands.GROUPS[group], node, f"{group}.")
    if found:
        raise UserError("\n".join(found))


def _plain(tree: DictConfig, key: str) -> Any:
    value = tree[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _at_home(path: Any) -> Any:
    """The path with ~ as the home folder."""
    if isinstance(path, list):
        return [_at_home(item) for item in path]
    return os.path.expanduser(path) if isinstance(path, str) else path
