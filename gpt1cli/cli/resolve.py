"""Resolves overrides into one typed configuration: Hydra composes, then `ablation`, `config`, `resume`, `init` apply.

All of this works on the unresolved mapping, so that an interpolation (lr: ${model.finetuning.lr}) follows the model
that the run really uses. After `compose` no code sees OmegaConf.

Longer than 300 lines: one rule per source of settings, and their order matters.
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
from gpt1cli.cli.hydra_loader import Composer, absolute_path, hydra_errors, hydra_resolvers
from gpt1cli.cli.overrides import ABSOLUTE_PATHS, HOME_PATHS, NOT_PATHS
from gpt1cli.config import commands, schema
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, display, flatten, unwrap
from gpt1cli.config.study import AblationConfig
from gpt1cli.config.training import FewConfig
from gpt1cli.pretrained import locate
from gpt1cli.runs import record
from gpt1cli.runs.files import read_config
from gpt1cli.runs.folder import unique_path
from gpt1cli.runs.record import read_environment

DEMO_TASK_KEYS = {"model", "tokenizer", "init", "epochs"}  # set by demo tasks, removed for commands without them
RESUMABLE_KEYS = ("runtime", "logger", "cache", "resume", "config")  # may differ in a resumed run, as may larger steps


@dataclass(frozen=True)
class ComposedRun:
    """A run's configuration and its absolute folder (the existing one if the run is resumed)."""

    config: commands.RunConfig
    folder: Path
    resumed: bool


def stored_groups(composer: Composer, words: list[str]) -> list[str]:
    """Return the groups of a stored configuration that the words do not name, as overrides for Hydra."""
    nodes = (_read_stored(composer, words) or ("", {}))[1]
    named = _override_values(words)
    if (run := _first_run(named)) and _uses_task_of_run(composer, named):
        nodes = {"task": _task_of_run(run)}
    chosen = {g: nodes[g].get("name") for g in composer.groups if g not in named and isinstance(nodes.get(g), dict)}
    return [f"{group}={option}" for group, option in chosen.items() if option in composer.options(group)]


def compose(composer: Composer, words: list[str]) -> ComposedRun:
    """Return the configuration of a run from overrides in Hydra's grammar. Raises UserError with all mistakes."""
    stored, named = _read_stored(composer, words), _override_values(words)
    if composer.cls is commands.EvaluateConfig and "task" not in named and _first_run(named) is None:
        raise UserError("run is needed: folder of a fine-tuned run, or runs=[RUN,...] for an ensemble")
    words = [*stored_groups(composer, words), *words]
    cfg = composer.load(words)
    length, ablated = named, {}
    if ablation_words := _ablation_overrides(composer, cfg):  # applied last, so that it wins over the user's words
        ablated = _override_values(ablation_words)
        length = ablated if ablated.keys() & {"steps", "epochs"} else named
        named = named | ablated
        cfg = composer.load([*words, *ablation_words])
    raw = typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    settings = raw.pop("hydra")
    if stored:
        raw = _merge_stored(stored[1], raw, named, composer)
    if "few" in raw and raw.get("shots") is not None and not (stored and _get_value(stored[1], "shots") is not None):
        length = length | _apply_few_shot_recipe(raw, named)
    if length.get("steps") is not None:
        raw["epochs"] = None
    elif length.get("epochs") is not None:
        raw["steps"] = None
    resumed = named.get("resume") is not None
    for key in DEMO_TASK_KEYS:
        if schema.annotation_of(composer.cls, key) is None:
            raw.pop(key, None)
    if {"init", "model", "tokenizer"} <= raw.keys() and not resumed:
        _adopt_init(raw, named, bool(stored), replaced=ablated.get("model.architecture") == "lstm")
    if (run := _first_run(named)) and _uses_task_of_run(composer, named):
        _adopt_run_task(raw, named, run)
    if {"prompt", "task"} <= raw.keys() and named.get("prompt") is not None:
        _apply_prompt_file(raw, named)
    with _name_stored_file(stored):
        _check_groups(composer, raw)
    with hydra_errors(), hydra_resolvers(cfg):
        tree = OmegaConf.create({**raw, "hydra": settings})
        data = {
            key: _to_plain(tree, key) if key != "hydra" else raw[key] for key in raw
        }  # a stored hydra: is an unknown key
        folder = absolute_path(named["resume"] if resumed else OmegaConf.select(tree, "hydra.run.dir"))
    if not resumed and not any(word.lstrip("+").startswith("hydra.run.dir=") for word in words):
        folder = unique_path(folder)
    for key in HOME_PATHS:
        if value := _get_value(data, key):
            _set_value(data, key, _expand_home(value))
    for key in ABSOLUTE_PATHS:
        value = _get_value(data, key)
        if value and isinstance(value, str) and (key, value) not in NOT_PATHS:
            _set_value(data, key, os.path.abspath(value))
    with _name_stored_file(stored):
        built = schema.build(composer.cls, data)
    if stored and resumed:
        _refuse_changes(stored[1], dataclasses.asdict(built), named)
    return ComposedRun(built, folder, resumed)


# --- stored configurations --------------------------------------------------------------------------------------------


def _read_stored(composer: Composer, words: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return path and content of the configuration that resume= or config= names; None if neither is named."""
    named = _override_values(words)
    if run := named.get("resume"):
        path = os.path.join(os.path.expanduser(run), "config.yaml")
        if not os.path.isfile(path):
            reason = "no run was started in that folder" if os.path.isdir(os.path.dirname(path)) else "no such folder"
            raise UserError(f"resume={display(run)}: {reason}; a run folder contains a config.yaml")
    elif file := named.get("config"):
        path = os.path.expanduser(file)
        path = os.path.join(path, "config.yaml") if os.path.isdir(path) else path
    else:
        return None
    command = read_environment(Path(path).parent).get("command", composer.command)
    if command != composer.command:
        raise UserError(f"{path} is the configuration of gpt1 {display(command)}, this is gpt1 {composer.command}")
    return path, read_config(path)


@contextlib.contextmanager
def _name_stored_file(stored: tuple[str, dict[str, Any]] | None) -> Iterator[None]:
    """Add the name of the stored file to a UserError, and a hint if a newer gpt1 wrote it."""
    try:
        yield
    except UserError as error:
        if stored is None:
            raise
        hint = record.newer_version_hint(Path(stored[0]).parent)
        raise UserError(f"{stored[0]}, with the overrides of this command line:\n{error}{hint}") from None


def _merge_stored(stored: dict[str, Any], raw: dict[str, Any], named: Mapping[str, Any], composer: Composer) -> dict:
    """Return the stored configuration with the named keys on top: a group replaces its node, a value its value."""
    ablated = _get_value(stored, "ablation.overrides")
    if ablated and "ablation" in named and _get_value(raw, "ablation.overrides") != ablated:
        raise UserError(
            f"ablation={named['ablation']}: the stored configuration already contains "
            f"ablation={display(_get_value(stored, 'ablation.name'))}, which cannot be undone; use a run without it"
        )
    merged = _overlay_values(composer.cls, raw, overrides.escape(stored))
    _set_named_values(merged, raw, named)
    if "cells" in named and named.get("resume") is None:
        merged["cells"] = [
            *_get_value(overrides.escape(stored), "cells"),
            *raw["cells"],
        ]  # the later override of a key wins
    is_renamed = any(
        group in named and _get_value(stored, f"{group}.name") == stored.get("name") for group in composer.groups
    )
    if is_renamed and "name" not in named:  # the run was named after its task or corpus, which has changed
        merged["name"] = raw["name"]
    return merged


def _overlay_values(cls: type, base: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the stored values; a key that an older gpt1 did not store keeps its default."""
    merged = dict(base)
    fields = schema.config_fields(cls)
    for name, value in stored.items():
        inner, current = unwrap(fields.get(name)), merged.get(name)
        if dataclasses.is_dataclass(inner) and isinstance(value, dict) and isinstance(current, dict):
            value = _overlay_values(typing.cast(type, inner), current, value)
        merged[name] = value
    return merged


def _refuse_changes(stored: dict[str, Any], built: dict[str, Any], named: Mapping[str, Any]) -> None:
    """Raise UserError that lists the named keys that differ from the resumed run."""
    before, after = dict(flatten(stored)), dict(flatten(built))
    groups = [key for key in named if f"{key}.name" in before and key not in RESUMABLE_KEYS]
    other = [key for key in groups if before[f"{key}.name"] != after.get(f"{key}.name")]
    changed = [f"  {group}={named[group]}: the run has {display(before[f'{group}.name'])}" for group in other]
    for key in before | after:
        parts, old, new = key.split("."), before.get(key), after.get(key)
        was_named = any(".".join(parts[:n]) in named for n in range(1, len(parts) + 1))
        is_longer = key == "steps" and isinstance(new, int) and (old is None or new > old)  # None: it counted epochs
        if was_named and parts[0] not in (*RESUMABLE_KEYS, *other) and not is_longer and new != old:
            changed.append(f"  {key}={display(new)}: the run has {display(old)}")
    if changed:
        rule = "uses the configuration of the run; only runtime.*, logger, cache and larger steps may differ:"
        raise UserError("\n".join([f"resume={display(named['resume'])} {rule}", *changed]))


def _apply_few_shot_recipe(raw: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Set the few-shot recipe for keys that were not named; return the keys and values set."""
    recipe = {FewConfig.TARGET_KEYS.get(name, name): value for name, value in raw["few"].items()}
    if "epochs" in named:  # it sets the length, as steps does
        del recipe["steps"]
    recipe = {key: value for key, value in recipe.items() if not {key, key.partition(".")[0]} & named.keys()}
    for key, value in recipe.items():
        _set_value(raw, key, value)
    return recipe


# --- init -------------------------------------------------------------------------------------------------------------


def _adopt_init(raw: dict[str, Any], named: Mapping[str, Any], stored: bool, replaced: bool) -> None:
    """Take the model and the tokenizer from init, with the user's values on top. Raises UserError if they contradict.

    `replaced`: an ablation replaces the Transformer by an LSTM; init's size and tokenizer are kept, and the weights
    come from an LSTM that was pretrained with them, or are random.
    """
    with hydra_errors():
        init = _to_plain(OmegaConf.create(raw), "init")
    if init == "none" or not isinstance(init, str) or not init:
        return
    known = locate.init_config(init)
    if replaced and known["model"]["architecture"] == "transformer":
        known["model"] = dataclasses.asdict(schema.build(ModelConfig, known["model"]).as_lstm())
        with hydra_errors():
            tree = OmegaConf.create(raw)
            init_lstm, out = _to_plain(tree, "init_lstm"), str(absolute_path(_to_plain(tree, "out")))
        lstm_run = locate.find_lstm(known, init, init_lstm, out)
        raw |= {"init": overrides.escape(lstm_run)} if lstm_run else {"pretrained": False}
    contradictions = []
    fixed = {"model": ModelConfig.SHAPE_KEYS[known["model"]["architecture"]], "tokenizer": locate.TOKENIZER_KEYS}
    for group, identity in fixed.items():
        if group not in named and not (stored and "init" not in named):
            values = {key: _get_value(raw, key) for key in named if key.startswith(f"{group}.")}
            raw[group] = overrides.escape(known[group])
            for key, value in values.items():
                _set_value(raw, key, value)
        with hydra_errors():
            node = schema.with_defaults(commands.GROUPS[group], _to_plain(OmegaConf.create(raw), group))
        differing = [name for name in identity if node.get(name) != known[group][name]]
        if differing:
            override = f"{group}={named[group]}" if group in named else group
            values_of_both = [
                f"{name}={display(node.get(name))}, not {display(known[group][name])}" for name in differing
            ]
            contradictions.append(f"{override} contradicts init={display(init)}: {'; '.join(values_of_both)}")
    if contradictions:
        hint = "remove it, because model and tokenizer come from init; or use init=none for random weights"
        raise UserError("\n".join([*contradictions, hint]))


# --- run --------------------------------------------------------------------------------------------------------------


def _first_run(named: Mapping[str, Any]) -> str | None:
    """Return the fine-tuned run of run=, or the first one of runs=."""
    runs = named.get("runs")
    run = named.get("run") or (runs[0] if isinstance(runs, list) and runs else None)
    return run if isinstance(run, str) else None


def _uses_task_of_run(composer: Composer, named: Mapping[str, Any]) -> bool:
    """Whether the command scores a fine-tuned run on that run's task, because no task is named."""
    has_keys = [schema.annotation_of(composer.cls, key) is not None for key in ("run", "task")]
    return all(has_keys) and "task" not in named


def _task_of_run(run: str) -> dict[str, Any]:
    """Return the task of the checkpoint that run= names. Raises UserError if it is not fine-tuned."""
    checkpoint = locate.read_checkpoint_config(locate.resolve_checkpoint(run, "run"))
    locate.checkpoint_task(checkpoint, run)
    return checkpoint["task"]


def _adopt_run_task(raw: dict[str, Any], named: Mapping[str, Any], run: str) -> None:
    """Take the task from a fine-tuned run, with the user's values on top."""
    composed = dict(raw)
    raw["task"] = overrides.escape(_task_of_run(run))
    _set_named_values(raw, composed, [key for key in named if key.startswith("task.")])


def _apply_prompt_file(raw: dict[str, Any], named: Mapping[str, Any]) -> None:
    """Replace the task's prompt by the yaml that prompt= names, with the user's values on top."""
    path, composed = os.path.abspath(_expand_home(named["prompt"])), dict(raw)
    if not os.path.isfile(path):
        raise UserError(
            f"prompt={display(named['prompt'])}: no such file; expected a yaml file with template and words"
        )
    raw["prompt"] = overrides.escape(path)
    raw["task"] = {**raw["task"], "prompt": overrides.escape(_read_prompt_file(path))}
    _set_named_values(raw, composed, [key for key in named if key.startswith("task.prompt.")])


def _read_prompt_file(path: str) -> dict[str, Any]:
    """Return the keys of a prompt's yaml, which may be below `prompt:`, as in a task's yaml.

    Raises UserError if it is not valid YAML, or if YAML reads its words as truth values.
    """
    try:
        prompt = read_config(Path(path))
    except UserError as error:
        raise UserError(f"{error}; a text that begins with a brace needs quotes") from error
    if prompt.keys() == {"prompt"} and isinstance(prompt["prompt"], dict):
        prompt = prompt["prompt"]
    words = prompt.get("words")
    for label, word in words.items() if isinstance(words, dict) else ():
        if any(isinstance(item, bool) for item in (label, *(word if isinstance(word, list) else [word]))):
            raise UserError(f"{path}: words: YAML reads yes, no, on, off, true and false as truth values: quote them")
    return prompt


# --- nested mappings --------------------------------------------------------------------------------------------------


def _override_values(words: list[str]) -> dict[str, Any]:
    """Return dotted key -> value (a group: its option) of the overrides, without those of Hydra's own settings."""
    named: dict[str, Any] = {}
    for override in overrides.parse_overrides(words):
        if not override.is_hydra_override() and not override.is_sweep_override():
            named |= flatten({override.key_or_group: overrides.unescape(override.value())})
    return named


def _get_value(data: Any, key: str) -> Any:
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _set_named_values(data: dict[str, Any], composed: Mapping[str, Any], named: Iterable[str]) -> None:
    """Copy the named keys from Hydra's composition into `data`; remove those that an override deleted."""
    for key in sorted(named, key=lambda key: key.count(".")):
        parent, _, name = key.rpartition(".")
        if name in ((_get_value(composed, parent) if parent else composed) or ()):
            _set_value(data, key, _get_value(composed, key))
        elif isinstance(node := _get_value(data, parent), dict):  # ~task.splits.test
            node.pop(name, None)


def _set_value(data: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        data[name] = dict(data[name]) if isinstance(data.get(name), dict) else {}
        data = data[name]
    data[last] = value


# --- OmegaConf --------------------------------------------------------------------------------------------------------


def _ablation_overrides(composer: Composer, cfg: DictConfig) -> list[str]:
    """Return the overrides of the ablation, in Hydra's grammar."""
    if unwrap(schema.annotation_of(composer.cls, "ablation")) is not AblationConfig:
        return []
    with hydra_errors():
        words = [str(word) for word in _to_plain(cfg.ablation, "overrides")]
    try:
        return composer.check_overrides(words, complete=False)
    except UserError as error:
        raise UserError(f"mistakes in the overrides of ablation={cfg.ablation.name}:\n{error}") from None


def _check_groups(composer: Composer, raw: Mapping[str, Any]) -> None:
    """Raise UserError for unknown or missing keys of a group, before other keys interpolate them."""
    problems = []
    for group in composer.groups:
        if isinstance(node := raw.get(group), dict) and group in commands.GROUPS:
            problems += schema.key_problems(commands.GROUPS[group], node, f"{group}.")
    if problems:
        raise UserError("\n".join(problems))


def _to_plain(tree: DictConfig, key: str) -> Any:
    value = tree[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _expand_home(path: Any) -> Any:
    """Return the path, or list of paths, with ~ expanded."""
    if isinstance(path, list):
        return [_expand_home(item) for item in path]
    return os.path.expanduser(path) if isinstance(path, str) else path
