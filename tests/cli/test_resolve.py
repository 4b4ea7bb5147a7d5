"""Overrides resolved to one configuration: literal values, mistakes, steps, ablation, config, resume, init."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt1cli.cli import overrides
from gpt1cli.cli.hydra_loader import Composer, ConfigSource
from gpt1cli.cli.resolve import ComposedRun, compose
from gpt1cli.config import commands, options
from gpt1cli.config.schema import UserError
from gpt1cli.runs import files


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT1_HUB", raising=False)
    monkeypatch.delenv("GPT1_CACHE", raising=False)


COMPOSERS = {command: Composer(command) for command in commands.COMMANDS}


def compose_words(command: str, *words: str) -> ComposedRun:
    composer = COMPOSERS[command]
    return compose(composer, composer.check_overrides(list(words)))


def build_config(command: str, *words: str) -> Any:
    return compose_words(command, *words).config


def refusal(command: str, *words: str, sweep: bool = False) -> str:
    with pytest.raises(UserError) as error:
        composer = COMPOSERS[command]
        compose(composer, composer.check_overrides(list(words), sweep))
    message = str(error.value)
    assert len(message.splitlines()) < 16 and "Traceback" not in message
    return message


def run_folder(folder: Path, command: str, *words: str) -> Path:
    """A run folder with the files that a run of that command line writes."""
    folder.mkdir(parents=True)
    files.write_json(folder / "environment.json", {"command": command})
    files.write_text(folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(cached_config(command, *words))))
    return folder


@functools.cache
def cached_config(command: str, *words: str) -> Any:
    return build_config(command, *words)


def checkpoint(folder: Path, model: str = "tiny", tokenizer: str = "demo", **model_changes: Any) -> Path:
    nodes = {
        group: yaml.safe_load((options.folder() / group / f"{option}.yaml").read_text())
        for group, option in (("model", model), ("tokenizer", tokenizer))
    }
    folder.mkdir(parents=True)
    content = {"format": 1, **nodes, "model": nodes["model"] | model_changes, "vocabulary": 1239, "special_rows": 0}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


# --- literal values ---------------------------------------------------------------------------------------------------

UGLY = [
    "a b", "a,b", "a=b", "=", "a\\", "\\", "\\\\'", "'", '"', "it's", '"q"', "$x", "$", "${x}",
    "${oc.env:HOME}", "${", "\\${x}", "}{", "[a]", "[a,b", "{a: b}", "(x)", "choice(a,b)", "a:b", "#x", "%",
    "&*!|>", "-", "--help", "~", "null ", "Null", "true", "1e3", "0x10", "nan", "???", "", " lead", "trail ",
    "\ttab", "new\nline", "é ü 漢字 🙂", "\udcff", "C:\\new\\table", "a;b`c`", "@pkg", "x@y=z", "+", "..", "...",
    "/abs/path", "${gpt1.text:x61}",
]  # fmt: skip


def parsed_value(word: str, cls: type, sweep: bool = False) -> Any:
    """The value of an override after Hydra's parser and OmegaConf."""
    [override] = overrides.parse_overrides([overrides.translate_override(word, cls, sweep)])
    tree = OmegaConf.create({"value": override.value()})
    return OmegaConf.to_container(tree, resolve=True)["value"]


@pytest.mark.parametrize("value", UGLY)
def test_literal_value_arrives_unchanged(value):
    for key in ("out", "corpus.path", "init", "name"):
        assert parsed_value(f"{key}={value}", commands.PretrainConfig) == value


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("'\"\\${}[](),:= \tax~+.é\n"), max_size=12))
@example("\\'\\\\'\\")
def test_random_literal_value_arrives_unchanged(value):
    assert parsed_value(f"out={value}", commands.PretrainConfig) == value


def test_special_characters_survive_the_whole_composition():
    value = "a b,c='\"\\${oc.env:HOME} é"
    run = compose_words("pretrain", f"out={value}", "corpus=text", "corpus.path=???")
    assert (run.config.out, run.config.corpus.path) == (value, os.path.abspath("???"))
    assert str(run.folder).startswith(str(Path.cwd() / value / "pretrain" / "text"))


def test_null_stays_null_if_allowed():
    assert parsed_value("hub=null", commands.PretrainConfig) is None
    assert parsed_value("out=null", commands.PretrainConfig) == "null"


@pytest.mark.parametrize(
    ("value", "runs"),
    [
        ("[a,b]", ["a", "b"]),
        ("[ a b ,'c,d',\"e\"]", ["a b", "c,d", "e"]),
        ("[it's,${x}]", ["it's", "${x}"]),
        ("one,run", ["one,run"]),
        ("[]", []),
        ("null", ["null"]),
    ],
)
def test_list_of_literals(value, runs):
    assert parsed_value(f"runs={value}", commands.ReportConfig) == runs


def test_comma_in_init_sweeps_only_with_multirun():
    assert overrides.translate_override("init=a b,c", commands.PretrainConfig, sweep=True) == "init='a b','c'"
    assert parsed_value("init=a b,c", commands.PretrainConfig) == "a b,c"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("ablaton=full", "ablaton: no such key; did you mean ablation?"),
        ("n_layer=3", "n_layer: no such key; did you mean model.n_layer?"),
        ("model.n_embd=64", "model.n_embd: no such key; did you mean model.d_model?"),
        ("learning_rate=1", "learning_rate: no such key; did you mean lr?"),
        ("modle.n_layer=3", "modle.n_layer: no such key; did you mean model.n_layer?"),
        ("corpus=demo", "corpus: no such key"),
        ("model.n_layer.x=3", "model.n_layer.x: no such key"),
        ("ablation=no_aux", "no such ablation; did you mean no_aux_lm? known: full, lstm, no_aux_lm, no_pretrain"),
        ("model=[base,tiny]", "no such model"),
        ("model=null", "model=null: no such model"),
        ("model={n_layr: 3}", "model.n_layr: no such key; did you mean model.n_layer?"),
        ("model={n_layer: x}", "model.n_layer=x is refused"),
        ("steps=1e3", "steps=1e3 is refused: expected int or null"),
        ("limit.train=abc", "limit.train=abc is refused: expected int or null"),
        ("limit={train: abc}", "limit.train=abc is refused"),
        ("limit=3", "limit=3 is refused"),
        ("lr=nan", "lr=nan is refused: expected number"),
        ("lr=1e999", "lr=1e999 is refused"),
        ("lr=0", "lr=0 is refused: it must be above 0"),
        ("lr=" + "9" * 400, "expected number"),
        ("seed=" + "9" * 5000, "not a valid override"),
        ("seed=-1", "seed=-1 is refused: it must be at least 0"),
        ("pretrained=yes", "pretrained=yes is refused: expected true or false"),
        ("name=a/b", "name=a/b is refused: it must match"),
        ("out=", "out= is refused: it must not be empty"),
        ("hub=a\0b", "must not contain a NUL"),
        ("transfer_layers=some", "transfer_layers=some is refused: expected int or all"),
        ("+foo=1", "foo: no such key"),
        ("++foo.bar=1", "foo.bar: no such key"),
        ("~lr", "~lr is refused: lr is needed"),
        ("~limit.train", "~limit.train is refused: limit.train is needed; limit.train=null turns it off"),
        ("~model", "~model is refused: model is needed"),
        ("~foo", "foo: no such key"),
        ("lr=[1,2", "lr=[1,2: not a valid override"),
        ("lr", "lr: not a valid override"),
        ("=3", "no such key"),
        ("model@x=base", "model@x: no such key"),
        ("lr=1,2", "lr=1,2: several values are a sweep: add -m"),
        ("task.columns=a,b", "write a list as task.columns=[a,b]"),
        ("seed=range(3)", "several values are a sweep: add -m"),
        ("hydra.job.chdir=true", "gpt1 never changes the working directory"),
        ("hydra.nope=1", "Could not override 'hydra.nope'"),
        ("lr=${nope}", "Interpolation key 'nope' not found"),
        ("lr=${init}", "lr=none is refused: expected number"),
        ("model.n_head=5", "model.n_head=5 does not divide d_model=128"),
    ],
)
def test_mistake_is_reported_with_what_is_allowed(word, fragment):
    assert fragment in refusal("finetune", "task=demo_sentiment", "init=none", word)


def test_mistakes_are_reported_together():
    message = refusal("finetune", "ablaton=full", "lr=nan", "steps=1", "epochs=2", "task=sts2")
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "ablaton",
        "lr=nan is refused",
        "task=sts2",
        "steps and epochs",
    ]
    assert "task is needed: task=one of ax, blimp, cola, cr, demo_acceptability" in refusal("finetune", "lr=1")


def test_wrong_key_in_a_users_yaml_is_named(tmp_path):
    (tmp_path / "task").mkdir()
    task = (Path(options.folder()) / "task" / "sst2.yaml").read_text()
    (tmp_path / "task" / "mood.yaml").write_text(task.replace("name: ", "nme: ").replace("label: ", "lable: "))
    composer = Composer("finetune", ConfigSource(extra=str(tmp_path)))
    with pytest.raises(UserError) as error:
        compose(composer, composer.check_overrides(["task=mood", "init=none"]))
    assert str(error.value).splitlines() == [
        "task.nme: no such key; did you mean task.name?",
        "task.lable: no such key; did you mean task.label?",
        "task.name: missing",
        "task.label: missing",
    ]


def test_every_element_of_a_sweep_is_checked():
    composer = COMPOSERS["finetune"]
    assert composer.check_overrides(
        ["task=rte,cola", "lr=1e-4,1e-3", "seed=range(0,3)", "ablation=glob(no_*)"], sweep=True
    )
    message = refusal("finetune", "task=rte,col", "lr=1e-4,abc", "seed=range(-1,3)", "steps=range(1,9,0)", sweep=True)
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "task=col",
        "lr=abc is refused",
        "seed=-1 is refused",
        "steps=range(1,9,0)",
    ]
    assert "remove -m" in refusal("finetune", "task=rte", "resume=x", sweep=True)


def test_mapping_keys_may_be_new_and_plus_is_allowed_for_existing_keys():
    words = ["task.splits.test_extra=test", "~task.splits.test=test", "+lr=0.5", "+seed=3"]
    built = build_config("finetune", "task=rte", "init=none", *words)
    assert built.task.splits == {"train": "train", "valid": "validation", "test_extra": "test"}
    assert (built.lr, built.seed) == (0.5, 3)


def test_users_folder_adds_options_and_presets(tmp_path):
    from gpt1cli.cli.hydra_loader import ConfigSource

    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "preset").mkdir()
    rte = (options.folder() / "task" / "rte.yaml").read_text()
    (tmp_path / "mine" / "task" / "own.yaml").write_text(rte.replace("name: rte", "name: own"))
    (tmp_path / "mine" / "preset" / "quick.yaml").write_text("# @package _global_\nsteps: 7\nepochs: null\n")
    for source in (
        ConfigSource(extra=str(tmp_path / "mine")),
        ConfigSource(search=(f"hydra.searchpath=[file://{tmp_path / 'mine'}]",)),
    ):
        composer = Composer("finetune", source)
        built: Any = compose(composer, composer.check_overrides(["task=own", "+preset=quick", "init=none"])).config
        assert (built.task.name, built.steps) == ("own", 7)
        with pytest.raises(UserError, match="preset=quik: no such preset; did you mean quick"):
            composer.check_overrides(["task=own", "+preset=quik"])


# --- steps and ablation -----------------------------------------------------------------------------------------------


def test_steps_replace_epochs_and_epochs_keep_steps_null():
    for words, expected in (([], (None, 100)), (["steps=5"], (5, None)), (["steps=null", "epochs=2"], (None, 2))):
        built = build_config("pretrain", *words)
        assert (built.steps, built.epochs) == expected


def test_ablation_is_applied_after_the_users_words():
    built = build_config("finetune", "ablation=no_aux_lm", "aux_lm=true", "task=rte", "init=none")
    assert built.aux_lm is False and built.ablation.name == "no_aux_lm"
    words = ["task=rte", "init=none", "model=tiny", "steps=9", "epochs=null"]
    config = build_config("finetune", *words, "ablation.overrides=['model=mini','epochs=2']")
    assert config.model.name == "mini" and config.lr == 3e-4  # a group, and a key that interpolates it
    assert (config.steps, config.epochs) == (None, 2.0)
    message = refusal("finetune", "task=rte", "init=none", "ablation.overrides=['aux=false']")
    expected = ["mistakes in the overrides of ablation=full:", "aux: no such key; did you mean aux_lm?"]
    assert message.splitlines() == expected


# --- few-shot recipe --------------------------------------------------------------------------------------------------


def recipe(built: Any) -> tuple[Any, ...]:
    return built.steps, built.epochs, built.eval_every, built.batch_size, built.warmup_fraction, built.aux_lm


def test_shots_set_the_few_shot_recipe_and_named_keys_win():
    words = ("task=demo_sentiment", "shots=16")  # a task with epochs=20
    built = build_config("finetune", *words)
    assert recipe(built) == (1000, None, 100, 8, 0.0, False)
    assert (built.optimizer.weight_decay, built.lr) == (0.0, built.model.finetuning.lr)
    overridden = build_config(
        "finetune", *words, "batch_size=2", "optimizer.weight_decay=0.1", "eval_every=null", "aux_lm=true"
    )
    assert recipe(overridden) == (1000, None, None, 2, 0.0, True) and overridden.optimizer.weight_decay == 0.1
    assert recipe(build_config("finetune", *words, "epochs=3"))[:2] == (None, 3.0)
    assert recipe(build_config("finetune", *words, "few.steps=50", "few.eval_every=5"))[:3] == (50, None, 5)
    assert recipe(build_config("finetune", *words, "ablation.overrides=['steps=9']"))[:3] == (9, None, 100)
    plain = build_config("finetune", "task=demo_sentiment")
    assert (plain.epochs, plain.aux_lm, plain.eval_every) == (20.0, True, None)


def test_stored_recipe_is_kept_and_shots_change_the_recipe_of_a_full_run():
    few_shot_run = run_folder(Path("few"), "finetune", "task=rte", "init=none", "shots=4", "steps=7", "batch_size=2")
    repeated = build_config("finetune", f"config={few_shot_run}", "shots=8")
    assert (repeated.shots, *recipe(repeated)) == (8, 7, None, 100, 2, 0.0, False)
    assert compose_words("finetune", f"resume={few_shot_run}", "steps=9").config.steps == 9
    full_run = run_folder(Path("many"), "finetune", "task=rte", "init=none", "epochs=5")
    assert recipe(build_config("finetune", f"config={full_run}", "shots=4")) == (1000, None, 100, 8, 0.0, False)


def test_prompt_file_replaces_the_tasks_prompt_and_named_keys_win():
    template = "template: '{sentence} all in all {label}'\n"
    Path("mine.yaml").write_text(f"{template}words: {{negative: bad, positive: [good, fine]}}\n")
    words = ("task=sst2", "init=none", "method=prompt")
    built = build_config("finetune", *words, "prompt=mine.yaml", "task.prompt.normalise=mean")
    assert built.prompt == str(Path("mine.yaml").absolute()) and built.task.prompt.normalise == "mean"
    assert built.task.prompt.template == "{sentence} all in all {label}"
    assert built.task.prompt.words == {"negative": "bad", "positive": ["good", "fine"]}
    run = run_folder(Path("run"), "finetune", *words, "prompt=mine.yaml")
    Path("mine.yaml").write_text("template: no slot\n")
    repeated = build_config("finetune", f"config={run}")  # as stored in the run
    assert repeated.task.prompt.template == "{sentence} all in all {label}"
    assert "prompt.template=no slot" in refusal("finetune", *words, "prompt=mine.yaml")
    assert "prompt=none.yaml: no such file" in refusal("finetune", *words, "prompt=none.yaml")
    Path("mine.yaml").write_text(f"{template}word: {{}}\n")
    assert "prompt.word: no such key" in refusal("finetune", *words, "prompt=mine.yaml")
    Path("mine.yaml").write_text(f"{template}words: {{negative: bad, positive: fine}}\n")
    assert "mine.yaml needs method=prompt" in refusal("finetune", "task=sst2", "init=none", "prompt=mine.yaml")


def test_prompt_file_may_have_a_prompt_key(tmp_path):
    keys = "template: '{text} is {label}'\nwords: {negative: 'no', positive: ['yes']}\n"
    (tmp_path / "mine.yaml").write_text("prompt:\n  " + keys.replace("\nw", "\n  w"))
    words = ["task=demo_sentiment", f"prompt={tmp_path / 'mine.yaml'}", "method=prompt"]
    config = compose(COMPOSERS["finetune"], words).config
    assert config.task.prompt.template == "{text} is {label}" and config.task.prompt.words["positive"] == ["yes"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("template: '{text} {label}'\nwords: {negative: no, positive: good}", "YAML reads yes, no, on, off"),
        ("template: '{text} {label}'\nwords: {negative: [bad, off], positive: good}", "truth values: quote them"),
        ("template: {text} it was {label}", "a text that begins with a brace needs quotes"),
    ],
)
def test_prompt_file_with_yaml_truth_values_is_refused(tmp_path, text, fragment):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(fragment)):
        compose(COMPOSERS["finetune"], ["task=demo_sentiment", f"prompt={tmp_path / 'mine.yaml'}", "method=prompt"])


def test_ensemble_uses_the_task_of_its_first_run(tmp_path):
    for name, task in (("a", "rte"), ("b", "mrpc")):
        folder = tmp_path / name / "checkpoints" / "1"
        folder.mkdir(parents=True)
        task = dataclasses.asdict(build_config("finetune", f"task={task}", "init=none").task)
        shape = {"model": options.values("model", "tiny"), "tokenizer": options.values("tokenizer", "demo")}
        content = {"format": 1, **shape, "vocabulary": 9, "special_rows": 3, "task": task}
        files.write_json(folder / "config.json", content)
    built = build_config(
        "evaluate", f"runs=[{tmp_path / 'b' / 'checkpoints' / '1'},{tmp_path / 'a' / 'checkpoints' / '1'}]"
    )
    assert built.task.name == built.name == "mrpc" and len(built.ensemble_runs) == 2
    message = refusal("evaluate", "run=x", "runs=[x,x]", "task=rte")
    assert "exactly one of run=RUN and runs=" in message and "duplicate x" in message


# --- config and resume ------------------------------------------------------------------------------------------------

RUN = ["task=rte", "init=none", "model=tiny", "tokenizer=demo", "seed=7", "lr=0.25", "steps=100", "task.label=gold"]


def test_config_repeats_a_run_and_the_users_words_win():
    run = run_folder(Path("run"), "finetune", *RUN)
    first, repeated = cached_config("finetune", *RUN), compose_words("finetune", "config=run/config.yaml")
    assert dataclasses.replace(repeated.config, config=None) == first
    assert repeated.folder.parent == Path.cwd() / "outputs" / "finetune" / "rte" and not repeated.resumed
    changed = build_config(
        "finetune",
        f"config={run}",
        "model=mini",
        "model.n_layer=3",
        "lr=0.5",
        "epochs=2",
        "task.splits.test_x=y",
        "~task.splits.test",
    )
    assert (changed.model.name, changed.model.n_layer, changed.model.d_model) == ("mini", 3, 256)
    assert (changed.lr, changed.epochs, changed.steps, changed.seed) == (0.5, 2.0, None, 7)
    assert changed.task.label == "gold" and changed.name == "rte"
    assert changed.task.splits == {"train": "train", "valid": "validation", "test_x": "y"}
    assert build_config("finetune", f"config={run}", "task=cola").name == "cola"  # the run was named after its task


def test_config_keeps_an_ablation_which_cannot_be_undone():
    run = run_folder(Path("run"), "finetune", *RUN, "ablation=no_aux_lm")
    assert build_config("finetune", f"config={run}").aux_lm is False
    assert "which cannot be undone" in refusal("finetune", f"config={run}", "ablation=full")


def test_stored_configuration_is_not_interpolated(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    stored = files.read_config(run / "config.yaml")
    files.write_text(run / "config.yaml", yaml.safe_dump(stored | {"out": "${oc.env:HOME}"}))
    assert build_config("finetune", f"config={run}").out == "${oc.env:HOME}"
    files.write_text(run / "config.yaml", yaml.safe_dump(stored | {"lr": "fast", "hydra": {"run": {"dir": "x"}}}))
    message = refusal("finetune", f"config={run}")
    assert f"{run / 'config.yaml'}" in message and "lr=fast is refused" in message and "hydra: no such key" in message


def test_key_missing_from_an_older_run_keeps_its_default(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    stored = files.read_config(run / "config.yaml")
    del stored["head_dropout"], stored["optimizer"]["eps"]
    files.write_text(run / "config.yaml", yaml.safe_dump(stored))
    built = build_config("finetune", f"config={run}")
    assert (built.head_dropout, built.optimizer.eps, built.lr) == (0.1, 1e-8, 0.25)


def test_resume_uses_the_stored_configuration_and_folder(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    resumed = compose_words("finetune", "resume=run", "steps=200", "runtime.device=cpu", "seed=7", "task.label=gold")
    assert resumed.resumed and resumed.folder == run
    built: Any = resumed.config
    assert (built.steps, built.runtime.device, built.lr, built.resume) == (200, "cpu", 0.25, "run")


def test_resume_refuses_changed_keys():
    run_folder(Path("run"), "finetune", *RUN)
    message = refusal(
        "finetune", "resume=run", "lr=1", "steps=50", "model=mini", "task.label=silver", "task.splits.test_x=y"
    )
    assert sorted(message.splitlines()[1:]) == [
        "  lr=1.0: the run has 0.25",
        "  model=mini: the run has tiny",
        "  steps=50: the run has 100",
        "  task.label=silver: the run has gold",
        "  task.splits.test_x=y: the run has null",
    ]
    assert "epochs=3.0: the run has null" in refusal("finetune", "resume=run", "epochs=3")
    assert "resume and config: use only one" in refusal("finetune", "resume=run", "config=run")


def test_resume_needs_a_run_of_the_same_command(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "resume=nowhere: no such folder" in refusal("finetune", "resume=nowhere")
    assert "no run was started in that folder" in refusal("finetune", "resume=empty")
    run_folder(tmp_path / "run", "pretrain", "model=tiny")
    assert "is the configuration of gpt1 pretrain, this is gpt1 finetune" in refusal("finetune", "resume=run")


def test_resumed_run_does_not_need_its_init(tmp_path):
    start = checkpoint(tmp_path / "start")
    run = run_folder(tmp_path / "run", "finetune", "task=rte", f"init={start}")
    (start / "config.json").unlink()
    assert build_config("finetune", f"resume={run}").model.name == "tiny"
    assert "a folder with nothing in it" in refusal("finetune", f"config={run}")


# --- init -------------------------------------------------------------------------------------------------------------


def test_model_and_tokenizer_come_from_init_and_interpolations_follow(tmp_path):
    start = checkpoint(tmp_path / "${run}" / "checkpoints" / "20", n_layer=3, name="${odd}")
    (start.parent / "last").symlink_to("20")
    built = build_config("finetune", "task=rte", "init=${run}", "model.residual_dropout=0", "model.n_layer=3")
    assert (built.model.name, built.model.n_layer, built.model.d_model) == ("${odd}", 3, 128)
    assert (built.model.residual_dropout, built.tokenizer.source, built.lr) == (0.0, "demo", 1e-3)
    pretrained = build_config("pretrain", "init=${run}")
    assert (pretrained.context, pretrained.batch_size, pretrained.tokenizer.name) == (128, 8, "demo")


def test_named_group_that_agrees_with_init_is_used(tmp_path):
    checkpoint(tmp_path / "start", residual_dropout=0.5)
    assert build_config("finetune", "task=rte", "init=start").model.residual_dropout == 0.5
    assert build_config("finetune", "task=rte", "init=start", "model=tiny").model.residual_dropout == 0.1


def finished_lstm(
    folder: Path, merges: str = "a b", command: str = "pretrain", dates: Sequence[str] = (), **changes: Any
) -> Path:
    """A finished pretraining (or other) run of an LSTM of tiny's size, started and resumed on these dates."""
    start = checkpoint(folder / "checkpoints" / "10", architecture="lstm", **changes)
    (start / "merges.txt").write_text(merges)
    (start.parent / "last").symlink_to("10")
    (folder / "result.json").write_text(json.dumps({"command": command}))
    if dates:
        first, *rest = ({"date": f"2026-{date}+00:00"} for date in dates)
        (folder / "environment.json").write_text(json.dumps(first | {"resumed": rest}))
    return folder


def test_lstm_ablation_keeps_size_and_tokenizer_and_has_random_weights_without_a_pretrained_lstm(tmp_path):
    start = checkpoint(tmp_path / "start", d_model=64)
    run = build_config("finetune", "task=rte", f"init={start}", "ablation=lstm")
    assert run.model.shape == {"architecture": "lstm", "d_model": 64, "lstm_units": 320, "n_positions": 128}
    assert (run.init, run.pretrained, run.tokenizer.name) == (str(start), False, "demo")
    assert build_config("finetune", "task=rte", "ablation=lstm").model.lstm_units == 2048


def test_lstm_ablation_starts_from_the_newest_matching_lstm(tmp_path):
    (checkpoint(tmp_path / "start") / "merges.txt").write_text("a b")
    runs = tmp_path / "outputs" / "pretrain" / "demo"
    wanted = [finished_lstm(runs / name) for name in ("1", "2")]
    finished_lstm(runs / "3", lstm_units=100)  # another size
    finished_lstm(runs / "4", merges="b c")  # another tokenizer
    (finished_lstm(runs / "5") / "result.json").unlink()  # not finished
    finished_lstm(runs / "6", command="finetune")
    for age, number in enumerate("634521"):
        path = runs / number / "result.json"
        if path.exists():
            os.utime(path, (1000 - age, 1000 - age))
    run = build_config("finetune", "task=rte", "init=start", "ablation=lstm")
    assert (run.init, run.pretrained, run.model.lstm_units) == (str(wanted[1]), True, 320)
    assert build_config("finetune", "task=rte", "init=start", "ablation=lstm", f"init_lstm={wanted[0]}").init == str(
        wanted[0]
    )


@pytest.mark.parametrize("record", [None, '{"date": 3}', '{"date": "2026-01-01", "resumed": 3}', "[", "{}"])
def test_newest_lstm_is_found_by_its_record_not_by_file_times(tmp_path, record):
    (checkpoint(tmp_path / "start") / "merges.txt").write_text("a b")
    runs = tmp_path / "outputs" / "pretrain" / "demo"
    dates = {"9": ["10-24T08:00:00"], "1": ["10-23T23:59:59", "10-25T01:00:00"], "5": ["10-25T00:59:59"], "7": []}
    for age, (name, run_dates) in enumerate(dates.items()):
        result = finished_lstm(runs / name, dates=run_dates) / "result.json"
        os.utime(result, (1000 + age, 1000 + age))  # as after a copy
    if record is not None:
        (runs / "7" / "environment.json").write_text(record)
    assert build_config("finetune", "task=rte", "init=start", "ablation=lstm").init == str(runs / "1")


@pytest.mark.parametrize("words", [["init=start"], ["init=none", "ablation=lstm"], ["init=run", "ablation=lstm"]])
def test_unused_init_lstm_is_refused(tmp_path, words):
    checkpoint(tmp_path / "start")
    finished_lstm(tmp_path / "run"), finished_lstm(tmp_path / "other")
    message = refusal("finetune", "task=rte", "init_lstm=other", *words)
    assert "other is unused: only ablation=lstm uses it, instead of a Transformer's init=" in message


def test_lstm_has_its_own_pretraining_learning_rate(tmp_path):
    words = ["pretrain", "corpus=demo", "tokenizer=demo"]
    assert build_config(*words, "model=mini").lr == 5e-4
    assert build_config(*words, "model=mini", "model.architecture=lstm").lr == 2e-3
    assert build_config(*words, "model=lstm").lr == 1e-3
    assert build_config(*words, "model=mini", "model.architecture=lstm", "lr=1e-4").lr == 1e-4
    recipe = {"batch_size": 8, "context": 128, "lr": 1e-3, "warmup_steps": 300}  # of an older gpt1
    checkpoint(tmp_path / "start", architecture="lstm", pretraining=recipe)
    assert build_config("pretrain", "corpus=demo", "init=start").lr == 1e-3


def test_mismatching_init_lstm_is_refused_with_the_differences(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "ablation=lstm", "init_lstm=start")
    assert message.splitlines()[1:] == ["  model.architecture=transformer, not lstm"]
    finished_lstm(tmp_path / "run", lstm_units=100)
    message = refusal("finetune", "task=rte", "init=start", "ablation=lstm", "init_lstm=run")
    assert message.splitlines()[1:] == ["  model.lstm_units=100, not 320"]


def test_architecture_that_contradicts_init_is_refused_without_an_ablation(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "model.architecture=lstm")
    assert "contradicts init=start: architecture=lstm, not transformer" in message


@pytest.mark.parametrize(
    ("word", "fragment"),
    [("transfer_layers=1", "counts Transformer layers"), ("runtime.compile=true", "for Transformer layers")],
)
def test_transformer_keys_are_refused_for_an_lstm(tmp_path, word, fragment):
    start = checkpoint(tmp_path / "start", architecture="lstm")
    assert fragment in refusal("finetune", "task=rte", f"init={start}", word)


def test_contradiction_to_init_is_refused_with_both_values(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "model=mini", "tokenizer=bpe", "tokenizer.merges=500")
    assert message.splitlines() == [
        "model=mini contradicts init=start: n_layer=4, not 2; d_model=256, not 128; d_ff=1024, not 512; "
        "n_positions=256, not 128",
        "tokenizer=bpe contradicts init=start: source=corpus, not demo; merges=500, not 1000",
        "remove it, because model and tokenizer come from init; or use init=none for random weights",
    ]
    assert "model contradicts init=start: n_layer=4, not 2" in refusal("pretrain", "init=start", "model.n_layer=4")
    assert "model=small contradicts init=openai: n_layer=6, not 12" in refusal("finetune", "task=rte", "model=small")


def test_published_model_wins_over_the_defaults_of_a_demo_task():
    built = build_config("finetune", "task=demo_sentiment", "init=openai")
    assert (built.model.n_layer, built.tokenizer.name, built.lr) == (12, "openai", 6.25e-5)
    plain = build_config("finetune", "task=demo_sentiment")
    assert (plain.init, plain.model.name, plain.tokenizer.name) == ("none", "tiny", "demo")
    assert build_config("pretrain", "corpus=demo", "tokenizer=openai").tokenizer.name == "openai"


def test_init_that_is_not_a_checkpoint_is_refused(tmp_path):
    assert "init=nowhere: no such folder" in refusal("finetune", "task=rte", "init=nowhere")
    folder = checkpoint(tmp_path / "start")
    (folder / "config.json").write_text("{")
    assert "is not valid JSON" in refusal("finetune", "task=rte", "init=start")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_home_is_expanded_and_shared_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPT1_HUB", "mirror")
    run = compose_words("pretrain", "out=~/runs", "corpus=text", "corpus.path=~/books")
    home = tmp_path / "home"
    assert (run.config.out, run.config.corpus.path) == (f"{home}/runs", f"{home}/books")
    assert (run.config.cache, run.config.hub) == (f"{home}/.cache/gpt1", f"{tmp_path}/mirror")
    assert run.folder.parent == home / "runs" / "pretrain" / "text"
    assert compose_words("pretrain", "hydra.run.dir=there/${seed}", "seed=5").folder == tmp_path / "there" / "5"
    assert build_config("pretrain", "out=there").out == "there"
