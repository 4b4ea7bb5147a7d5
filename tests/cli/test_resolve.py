"""From overrides to one configuration: literal values, mistakes, steps, ablation, config, resume, init."""

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
from gpt1cli.cli.hydra_loader import Composer, Source
from gpt1cli.cli.resolve import Composed, compose
from gpt1cli.config import commands, options
from gpt1cli.config.schema import UserError
from gpt1cli.runs import files


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT1_HUB", raising=False)
    monkeypatch.delenv("GPT1_CACHE", raising=False)


COMPOSERS = {command: Composer(command) for command in commands.COMMANDS}


def composed(command: str, *words: str) -> Composed:
    composer = COMPOSERS[command]
    return compose(composer, composer.check(list(words)))


def made(command: str, *words: str) -> Any:
    return composed(command, *words).config


def refusal(command: str, *words: str, sweep: bool = False) -> str:
    with pytest.raises(UserError) as refused:
        composer = COMPOSERS[command]
        compose(composer, composer.check(list(words), sweep))
    message = str(refused.value)
    assert len(message.splitlines()) < 16 and "Traceback" not in message
    return message


def run_folder(folder: Path, command: str, *words: str) -> Path:
    """A run folder as a run of that command line would have left it."""
    folder.mkdir(parents=True)
    files.write_json(folder / "environment.json", {"command": command})
    files.write_text(folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(once(command, *words))))
    return folder


@functools.cache
def once(command: str, *words: str) -> Any:
    return made(command, *words)


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


def arrived(word: str, cls: type, sweep: bool = False) -> Any:
    """The value of an override after Hydra's parser and OmegaConf."""
    [override] = overrides.parse([overrides.translate(word, cls, sweep)])
    tree = OmegaConf.create({"value": override.value()})
    return OmegaConf.to_container(tree, resolve=True)["value"]


@pytest.mark.parametrize("value", UGLY)
def test_a_literal_value_arrives_unchanged(value):
    for key in ("out", "corpus.path", "init", "name"):
        assert arrived(f"{key}={value}", commands.PretrainConfig) == value


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("'\"\\${}[](),:= \tax~+.é\n"), max_size=12))
@example("\\'\\\\'\\")
def test_any_literal_value_arrives_unchanged(value):
    assert arrived(f"out={value}", commands.PretrainConfig) == value


def test_ugly_values_go_through_the_whole_composition():
    value = "a b,c='\"\\${oc.env:HOME} é"
    run = composed("pretrain", f"out={value}", "corpus=text", "corpus.path=???")
    assert (run.config.out, run.config.corpus.path) == (value, os.path.abspath("???"))
    assert str(run.folder).startswith(str(Path.cwd() / value / "pretrain" / "text"))


def test_null_stays_null_where_it_is_allowed():
    assert arrived("hub=null", commands.PretrainConfig) is None
    assert arrived("out=null", commands.PretrainConfig) == "null"


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
def test_a_list_of_literals(value, runs):
    assert arrived(f"runs={value}", commands.ReportConfig) == runs


def test_a_comma_in_init_sweeps_under_m_only():
    assert overrides.translate("init=a b,c", commands.PretrainConfig, sweep=True) == "init='a b','c'"
    assert arrived("init=a b,c", commands.PretrainConfig) == "a b,c"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("ablaton=full", "ablaton: no such key; did you mean ablation?"),
        ("n_layer=3", "n_layer: no such key; did you mean model.n_layer?"),
        ("model.n_embd=64", "model.n_embd: no such key; did you mean model.d_model?"),
        ("learning_rate=1", "learning_rate: no such key; did you mean lr?"),
        ("modle.n_layer=3", "modle.n_layer: no such key; did you mean model.n_layer?"),
        ("corpus=demo", "corpus: no such key"),
        ("model.n_layer.x=3", "model.n_layer.x: no such key"),
        ("ablation=no_aux", "no such ablation; did you mean no_aux_lm? there are full, lstm, no_aux_lm, no_pretrain"),
        ("model=[base,tiny]", "no such model"),
        ("model=null", "model=null: no such model"),
        ("model={n_layr: 3}", "model.n_layr: no such key; did you mean model.n_layer?"),
        ("model={n_layer: x}", "model.n_layer=x is refused"),
        ("steps=1e3", "steps=1e3 is refused: steps takes a whole number or null"),
        ("limit.train=abc", "limit.train=abc is refused: limit.train takes a whole number or null"),
        ("limit={train: abc}", "limit.train=abc is refused"),
        ("limit=3", "limit=3 is refused"),
        ("lr=nan", "lr=nan is refused: lr takes a number"),
        ("lr=1e999", "lr=1e999 is refused"),
        ("lr=0", "lr=0 is refused: it must be above 0"),
        ("lr=" + "9" * 400, "lr takes a number"),
        ("seed=" + "9" * 5000, "not an override"),
        ("seed=-1", "seed=-1 is refused: it must be at least 0"),
        ("pretrained=yes", "pretrained=yes is refused: pretrained takes true or false"),
        ("name=a/b", "name=a/b is refused: it must match"),
        ("out=", "out= is refused: it must not be empty"),
        ("hub=a\0b", "must not hold a NUL"),
        ("transfer_layers=some", "transfer_layers=some is refused: transfer_layers takes a whole number or one of all"),
        ("+foo=1", "foo: no such key"),
        ("++foo.bar=1", "foo.bar: no such key"),
        ("~lr", "~lr is refused: lr is needed"),
        ("~limit.train", "~limit.train is refused: limit.train is needed; limit.train=null switches it off"),
        ("~model", "~model is refused: model is needed"),
        ("~foo", "foo: no such key"),
        ("lr=[1,2", "lr=[1,2: not an override"),
        ("lr", "lr: not an override"),
        ("=3", "no such key"),
        ("model@x=base", "model@x: no such key"),
        ("lr=1,2", "lr=1,2: several values are a sweep: add -m"),
        ("task.columns=a,b", "a list is written task.columns=[a,b]"),
        ("seed=range(3)", "several values are a sweep: add -m"),
        ("hydra.job.chdir=true", "gpt1 never changes the directory"),
        ("hydra.nope=1", "Could not override 'hydra.nope'"),
        ("lr=${nope}", "Interpolation key 'nope' not found"),
        ("lr=${init}", "lr=none is refused: lr takes a number"),
        ("model.n_head=5", "model.n_head=5 does not divide d_model=128"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(word, told):
    assert told in refusal("finetune", "task=demo_sentiment", "init=none", word)


def test_mistakes_are_told_together():
    message = refusal("finetune", "ablaton=full", "lr=nan", "steps=1", "epochs=2", "task=sts2")
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "ablaton",
        "lr=nan is refused",
        "task=sts2",
        "steps and epochs are both named",
    ]
    assert "task is needed: task=one of ax, blimp, cola, cr, demo_acceptability" in refusal("finetune", "lr=1")


def test_a_yaml_of_ones_own_with_a_wrong_key_is_told_by_that_key(tmp_path):
    (tmp_path / "task").mkdir()
    task = (Path(options.folder()) / "task" / "sst2.yaml").read_text()
    (tmp_path / "task" / "mood.yaml").write_text(task.replace("name: ", "nme: ").replace("label: ", "lable: "))
    composer = Composer("finetune", Source(extra=str(tmp_path)))
    with pytest.raises(UserError) as refused:
        compose(composer, composer.check(["task=mood", "init=none"]))
    assert str(refused.value).splitlines() == [
        "task.nme: no such key; did you mean task.name?",
        "task.lable: no such key; did you mean task.label?",
        "task.name: missing",
        "task.label: missing",
    ]


def test_every_element_of_a_sweep_is_checked():
    composer = COMPOSERS["finetune"]
    assert composer.check(["task=rte,cola", "lr=1e-4,1e-3", "seed=range(0,3)", "ablation=glob(no_*)"], sweep=True)
    message = refusal("finetune", "task=rte,col", "lr=1e-4,abc", "seed=range(-1,3)", "steps=range(1,9,0)", sweep=True)
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "task=col",
        "lr=abc is refused",
        "seed=-1 is refused",
        "steps=range(1,9,0)",
    ]
    assert "leave -m out" in refusal("finetune", "task=rte", "resume=x", sweep=True)


def test_keys_of_a_mapping_may_be_new_and_plus_may_stand_before_what_is_there():
    words = ["task.splits.test_extra=test", "~task.splits.test=test", "+lr=0.5", "+seed=3"]
    built = made("finetune", "task=rte", "init=none", *words)
    assert built.task.splits == {"train": "train", "valid": "validation", "test_extra": "test"}
    assert (built.lr, built.seed) == (0.5, 3)


def test_a_users_own_folder_brings_options_and_presets(tmp_path):
    from gpt1cli.cli.hydra_loader import Source

    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "preset").mkdir()
    rte = (options.folder() / "task" / "rte.yaml").read_text()
    (tmp_path / "mine" / "task" / "own.yaml").write_text(rte.replace("name: rte", "name: own"))
    (tmp_path / "mine" / "preset" / "quick.yaml").write_text("# @package _global_\nsteps: 7\nepochs: null\n")
    for source in (
        Source(extra=str(tmp_path / "mine")),
        Source(search=(f"hydra.searchpath=[file://{tmp_path / 'mine'}]",)),
    ):
        composer = Composer("finetune", source)
        built: Any = compose(composer, composer.check(["task=own", "+preset=quick", "init=none"])).config
        assert (built.task.name, built.steps) == ("own", 7)
        with pytest.raises(UserError, match="preset=quik: no such preset; did you mean quick"):
            composer.check(["task=own", "+preset=quik"])


# --- steps and ablation -----------------------------------------------------------------------------------------------


def test_steps_replace_epochs_and_epochs_keep_steps_null():
    for words, found in (([], (None, 100)), (["steps=5"], (5, None)), (["steps=null", "epochs=2"], (None, 2))):
        built = made("pretrain", *words)
        assert (built.steps, built.epochs) == found


def test_an_ablation_is_applied_after_the_users_own_words():
    built = made("finetune", "ablation=no_aux_lm", "aux_lm=true", "task=rte", "init=none")
    assert built.aux_lm is False and built.ablation.name == "no_aux_lm"
    words = ["task=rte", "init=none", "model=tiny", "steps=9", "epochs=null"]
    both = made("finetune", *words, "ablation.overrides=['model=mini','epochs=2']")
    assert both.model.name == "mini" and both.lr == 3e-4  # a group, and what follows it
    assert (both.steps, both.epochs) == (None, 2.0)
    message = refusal("finetune", "task=rte", "init=none", "ablation.overrides=['aux=false']")
    told = ["the overrides of ablation=full are at fault:", "aux: no such key; did you mean aux_lm?"]
    assert message.splitlines() == told


# --- few examples -----------------------------------------------------------------------------------------------------


def recipe(built: Any) -> tuple[Any, ...]:
    return built.steps, built.epochs, built.eval_every, built.batch_size, built.warmup_fraction, built.aux_lm


def test_few_examples_bring_their_recipe_and_what_is_named_wins():
    words = ("task=demo_sentiment", "shots=16")  # a task that brings epochs=20
    built = made("finetune", *words)
    assert recipe(built) == (1000, None, 100, 8, 0.0, False)
    assert (built.optimizer.weight_decay, built.lr) == (0.0, built.model.finetuning.lr)
    own = made("finetune", *words, "batch_size=2", "optimizer.weight_decay=0.1", "eval_every=null", "aux_lm=true")
    assert recipe(own) == (1000, None, None, 2, 0.0, True) and own.optimizer.weight_decay == 0.1
    assert recipe(made("finetune", *words, "epochs=3"))[:2] == (None, 3.0)
    assert recipe(made("finetune", *words, "few.steps=50", "few.eval_every=5"))[:3] == (50, None, 5)
    assert recipe(made("finetune", *words, "ablation.overrides=['steps=9']"))[:3] == (9, None, 100)
    plain = made("finetune", "task=demo_sentiment")
    assert (plain.epochs, plain.aux_lm, plain.eval_every) == (20.0, True, None)


def test_a_stored_recipe_is_kept_and_few_examples_of_a_run_on_many_bring_theirs():
    few = run_folder(Path("few"), "finetune", "task=rte", "init=none", "shots=4", "steps=7", "batch_size=2")
    again = made("finetune", f"config={few}", "shots=8")
    assert (again.shots, *recipe(again)) == (8, 7, None, 100, 2, 0.0, False)
    assert composed("finetune", f"resume={few}", "steps=9").config.steps == 9
    many = run_folder(Path("many"), "finetune", "task=rte", "init=none", "epochs=5")
    assert recipe(made("finetune", f"config={many}", "shots=4")) == (1000, None, 100, 8, 0.0, False)


def test_a_prompt_of_a_file_takes_the_place_of_the_tasks_and_what_is_named_wins():
    template = "template: '{sentence} all in all {label}'\n"
    Path("mine.yaml").write_text(f"{template}words: {{negative: bad, positive: [good, fine]}}\n")
    words = ("task=sst2", "init=none", "method=prompt")
    built = made("finetune", *words, "prompt=mine.yaml", "task.prompt.normalise=mean")
    assert built.prompt == str(Path("mine.yaml").absolute()) and built.task.prompt.normalise == "mean"
    assert built.task.prompt.template == "{sentence} all in all {label}"
    assert built.task.prompt.words == {"negative": "bad", "positive": ["good", "fine"]}
    run = run_folder(Path("run"), "finetune", *words, "prompt=mine.yaml")
    Path("mine.yaml").write_text("template: no slot\n")
    again = made("finetune", f"config={run}")  # as it was read then
    assert again.task.prompt.template == "{sentence} all in all {label}"
    assert "prompt.template=no slot" in refusal("finetune", *words, "prompt=mine.yaml")
    assert "prompt=none.yaml: no such file" in refusal("finetune", *words, "prompt=none.yaml")
    Path("mine.yaml").write_text(f"{template}word: {{}}\n")
    assert "prompt.word: no such key" in refusal("finetune", *words, "prompt=mine.yaml")
    Path("mine.yaml").write_text(f"{template}words: {{negative: bad, positive: fine}}\n")
    assert "name that too" in refusal("finetune", "task=sst2", "init=none", "prompt=mine.yaml")


def test_a_prompt_may_be_written_as_a_tasks_yaml_has_it(tmp_path):
    keys = "template: '{text} is {label}'\nwords: {negative: 'no', positive: ['yes']}\n"
    (tmp_path / "mine.yaml").write_text("prompt:\n  " + keys.replace("\nw", "\n  w"))
    words = ["task=demo_sentiment", f"prompt={tmp_path / 'mine.yaml'}", "method=prompt"]
    composed = compose(COMPOSERS["finetune"], words).config
    assert composed.task.prompt.template == "{text} is {label}" and composed.task.prompt.words["positive"] == ["yes"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("template: '{text} {label}'\nwords: {negative: no, positive: good}", "YAML reads yes, no, on, off"),
        ("template: '{text} {label}'\nwords: {negative: [bad, off], positive: good}", "truth values: quote them"),
        ("template: {text} it was {label}", "a text that begins with a brace stands in quotes"),
    ],
)
def test_a_prompt_that_yaml_reads_otherwise_is_refused_with_the_way_to_write_it(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(told)):
        compose(COMPOSERS["finetune"], ["task=demo_sentiment", f"prompt={tmp_path / 'mine.yaml'}", "method=prompt"])


def test_an_ensemble_takes_the_task_of_its_first_run(tmp_path):
    for name, task in (("a", "rte"), ("b", "mrpc")):
        folder = tmp_path / name / "checkpoints" / "1"
        folder.mkdir(parents=True)
        task = dataclasses.asdict(made("finetune", f"task={task}", "init=none").task)
        shape = {"model": options.values("model", "tiny"), "tokenizer": options.values("tokenizer", "demo")}
        about = {"format": 1, **shape, "vocabulary": 9, "special_rows": 3, "task": task}
        files.write_json(folder / "config.json", about)
    built = made("evaluate", f"runs=[{tmp_path / 'b' / 'checkpoints' / '1'},{tmp_path / 'a' / 'checkpoints' / '1'}]")
    assert built.task.name == built.name == "mrpc" and len(built.members) == 2
    message = refusal("evaluate", "run=x", "runs=[x,x]", "task=rte")
    assert "name one of them" in message and "x is named twice" in message


# --- config and resume ------------------------------------------------------------------------------------------------

RUN = ["task=rte", "init=none", "model=tiny", "tokenizer=demo", "seed=7", "lr=0.25", "steps=100", "task.label=gold"]


def test_config_repeats_a_run_and_the_users_words_win():
    run = run_folder(Path("run"), "finetune", *RUN)
    first, again = once("finetune", *RUN), composed("finetune", "config=run/config.yaml")
    assert dataclasses.replace(again.config, config=None) == first
    assert again.folder.parent == Path.cwd() / "outputs" / "finetune" / "rte" and not again.resumed
    other = made(
        "finetune",
        f"config={run}",
        "model=mini",
        "model.n_layer=3",
        "lr=0.5",
        "epochs=2",
        "task.splits.test_x=y",
        "~task.splits.test",
    )
    assert (other.model.name, other.model.n_layer, other.model.d_model) == ("mini", 3, 256)
    assert (other.lr, other.epochs, other.steps, other.seed) == (0.5, 2.0, None, 7)
    assert other.task.label == "gold" and other.name == "rte"
    assert other.task.splits == {"train": "train", "valid": "validation", "test_x": "y"}
    assert made("finetune", f"config={run}", "task=cola").name == "cola"  # the run's name was its task's


def test_config_keeps_an_ablation_and_says_that_it_cannot_be_taken_back():
    run = run_folder(Path("run"), "finetune", *RUN, "ablation=no_aux_lm")
    assert made("finetune", f"config={run}").aux_lm is False
    assert "which cannot be taken back" in refusal("finetune", f"config={run}", "ablation=full")


def test_a_stored_configuration_is_data_and_not_a_program(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    stored = files.read_config(run / "config.yaml")
    files.write_text(run / "config.yaml", yaml.safe_dump(stored | {"out": "${oc.env:HOME}"}))
    assert made("finetune", f"config={run}").out == "${oc.env:HOME}"
    files.write_text(run / "config.yaml", yaml.safe_dump(stored | {"lr": "fast", "hydra": {"run": {"dir": "x"}}}))
    message = refusal("finetune", f"config={run}")
    assert f"{run / 'config.yaml'}" in message and "lr=fast is refused" in message and "hydra: no such key" in message


def test_what_an_older_run_did_not_store_keeps_its_default(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    stored = files.read_config(run / "config.yaml")
    del stored["head_dropout"], stored["optimizer"]["eps"]
    files.write_text(run / "config.yaml", yaml.safe_dump(stored))
    built = made("finetune", f"config={run}")
    assert (built.head_dropout, built.optimizer.eps, built.lr) == (0.1, 1e-8, 0.25)


def test_resume_takes_the_stored_configuration_and_the_runs_own_folder(tmp_path):
    run = run_folder(tmp_path / "run", "finetune", *RUN)
    again = composed("finetune", "resume=run", "steps=200", "runtime.device=cpu", "seed=7", "task.label=gold")
    assert again.resumed and again.folder == run
    built: Any = again.config
    assert (built.steps, built.runtime.device, built.lr, built.resume) == (200, "cpu", 0.25, "run")


def test_resume_refuses_what_is_named_differently():
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
    assert "both named" in refusal("finetune", "resume=run", "config=run")


def test_resume_wants_a_run_of_the_same_command(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "resume=nowhere: no such folder" in refusal("finetune", "resume=nowhere")
    assert "no run has begun in that folder" in refusal("finetune", "resume=empty")
    run_folder(tmp_path / "run", "pretrain", "model=tiny")
    assert "is the configuration of gpt1 pretrain, this is gpt1 finetune" in refusal("finetune", "resume=run")


def test_a_resumed_run_does_not_need_its_init_any_more(tmp_path):
    start = checkpoint(tmp_path / "start")
    run = run_folder(tmp_path / "run", "finetune", "task=rte", f"init={start}")
    (start / "config.json").unlink()
    assert made("finetune", f"resume={run}").model.name == "tiny"
    assert "a folder with nothing in it" in refusal("finetune", f"config={run}")


# --- init -------------------------------------------------------------------------------------------------------------


def test_model_and_tokenizer_come_from_init_and_interpolations_follow(tmp_path):
    start = checkpoint(tmp_path / "${run}" / "checkpoints" / "20", n_layer=3, name="${odd}")
    (start.parent / "last").symlink_to("20")
    built = made("finetune", "task=rte", "init=${run}", "model.residual_dropout=0", "model.n_layer=3")
    assert (built.model.name, built.model.n_layer, built.model.d_model) == ("${odd}", 3, 128)
    assert (built.model.residual_dropout, built.tokenizer.source, built.lr) == (0.0, "demo", 1e-3)
    pretrained = made("pretrain", "init=${run}")
    assert (pretrained.context, pretrained.batch_size, pretrained.tokenizer.name) == (128, 8, "demo")


def test_a_group_that_fits_init_is_taken_as_named(tmp_path):
    checkpoint(tmp_path / "start", residual_dropout=0.5)
    assert made("finetune", "task=rte", "init=start").model.residual_dropout == 0.5
    assert made("finetune", "task=rte", "init=start", "model=tiny").model.residual_dropout == 0.1


def finished_lstm(
    folder: Path, merges: str = "a b", command: str = "pretrain", dates: Sequence[str] = (), **changes: Any
) -> Path:
    """A finished pretraining (or another command's run) of an LSTM of tiny's size, begun and gone on with then."""
    start = checkpoint(folder / "checkpoints" / "10", architecture="lstm", **changes)
    (start / "merges.txt").write_text(merges)
    (start.parent / "last").symlink_to("10")
    (folder / "result.json").write_text(json.dumps({"command": command}))
    if dates:
        first, *rest = ({"date": f"2026-{date}+00:00"} for date in dates)
        (folder / "environment.json").write_text(json.dumps(first | {"resumed": rest}))
    return folder


def test_the_ablation_lstm_keeps_inits_size_and_tokenizer_and_starts_fresh_where_no_lstm_was_pretrained(tmp_path):
    start = checkpoint(tmp_path / "start", d_model=64)
    run = made("finetune", "task=rte", f"init={start}", "ablation=lstm")
    assert run.model.shape == {"architecture": "lstm", "d_model": 64, "lstm_units": 320, "n_positions": 128}
    assert (run.init, run.pretrained, run.tokenizer.name) == (str(start), False, "demo")
    assert made("finetune", "task=rte", "ablation=lstm").model.lstm_units == 2048


def test_the_ablation_lstm_starts_from_the_newest_finished_one_of_inits_size_and_tokenizer(tmp_path):
    (checkpoint(tmp_path / "start") / "merges.txt").write_text("a b")
    runs = tmp_path / "outputs" / "pretrain" / "demo"
    wanted = [finished_lstm(runs / name) for name in ("1", "2")]
    finished_lstm(runs / "3", lstm_units=100)  # another size
    finished_lstm(runs / "4", merges="b c")  # another text under the tokenizer
    (finished_lstm(runs / "5") / "result.json").unlink()  # not finished
    finished_lstm(runs / "6", command="finetune")
    for age, number in enumerate("634521"):
        path = runs / number / "result.json"
        if path.exists():
            os.utime(path, (1000 - age, 1000 - age))
    run = made("finetune", "task=rte", "init=start", "ablation=lstm")
    assert (run.init, run.pretrained, run.model.lstm_units) == (str(wanted[1]), True, 320)
    assert made("finetune", "task=rte", "init=start", "ablation=lstm", f"init_lstm={wanted[0]}").init == str(wanted[0])


@pytest.mark.parametrize("record", [None, '{"date": 3}', '{"date": "2026-01-01", "resumed": 3}', "[", "{}"])
def test_the_newest_lstm_is_so_by_its_own_record_whatever_the_times_of_its_files(tmp_path, record):
    (checkpoint(tmp_path / "start") / "merges.txt").write_text("a b")
    runs = tmp_path / "outputs" / "pretrain" / "demo"
    dates = {"9": ["10-24T08:00:00"], "1": ["10-23T23:59:59", "10-25T01:00:00"], "5": ["10-25T00:59:59"], "7": []}
    for age, (name, begun) in enumerate(dates.items()):
        result = finished_lstm(runs / name, dates=begun) / "result.json"
        os.utime(result, (1000 + age, 1000 + age))  # as a copy has them
    if record is not None:
        (runs / "7" / "environment.json").write_text(record)
    assert made("finetune", "task=rte", "init=start", "ablation=lstm").init == str(runs / "1")


@pytest.mark.parametrize("words", [["init=start"], ["init=none", "ablation=lstm"], ["init=run", "ablation=lstm"]])
def test_an_init_lstm_that_nothing_would_start_from_is_refused(tmp_path, words):
    checkpoint(tmp_path / "start")
    finished_lstm(tmp_path / "run"), finished_lstm(tmp_path / "other")
    message = refusal("finetune", "task=rte", "init_lstm=other", *words)
    assert "other is unused: only ablation=lstm starts from it, in the place of a Transformer's init=" in message


def test_an_lstm_is_pretrained_at_its_own_learning_rate(tmp_path):
    words = ["pretrain", "corpus=demo", "tokenizer=demo"]
    assert made(*words, "model=mini").lr == 5e-4
    assert made(*words, "model=mini", "model.architecture=lstm").lr == 2e-3
    assert made(*words, "model=lstm").lr == 1e-3
    assert made(*words, "model=mini", "model.architecture=lstm", "lr=1e-4").lr == 1e-4
    recipe = {"batch_size": 8, "context": 128, "lr": 1e-3, "warmup_steps": 300}  # of an older gpt1
    checkpoint(tmp_path / "start", architecture="lstm", pretraining=recipe)
    assert made("pretrain", "corpus=demo", "init=start").lr == 1e-3


def test_an_init_lstm_that_does_not_fit_is_refused_with_what_differs(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "ablation=lstm", "init_lstm=start")
    assert message.splitlines()[1:] == ["  model.architecture=transformer, not lstm"]
    finished_lstm(tmp_path / "run", lstm_units=100)
    message = refusal("finetune", "task=rte", "init=start", "ablation=lstm", "init_lstm=run")
    assert message.splitlines()[1:] == ["  model.lstm_units=100, not 320"]


def test_an_architecture_that_contradicts_init_is_refused_where_no_ablation_names_it(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "model.architecture=lstm")
    assert "contradicts init=start: architecture=lstm, not transformer" in message


@pytest.mark.parametrize(
    ("word", "told"),
    [("transfer_layers=1", "counts decoder blocks"), ("runtime.compile=true", "for decoder blocks")],
)
def test_what_only_decoder_blocks_have_is_refused_of_an_lstm(tmp_path, word, told):
    start = checkpoint(tmp_path / "start", architecture="lstm")
    assert told in refusal("finetune", "task=rte", f"init={start}", word)


def test_a_contradiction_to_init_is_refused_with_both_values(tmp_path):
    checkpoint(tmp_path / "start")
    message = refusal("finetune", "task=rte", "init=start", "model=mini", "tokenizer=bpe", "tokenizer.merges=500")
    assert message.splitlines() == [
        "model=mini contradicts init=start: n_layer=4, not 2; d_model=256, not 128; d_ff=1024, not 512; "
        "n_positions=256, not 128",
        "tokenizer=bpe contradicts init=start: source=corpus, not demo; merges=500, not 1000",
        "leave it out: model and tokenizer come from init; or name init=none for fresh weights",
    ]
    assert "model contradicts init=start: n_layer=4, not 2" in refusal("pretrain", "init=start", "model.n_layer=4")
    assert "model=small contradicts init=openai: n_layer=6, not 12" in refusal("finetune", "task=rte", "model=small")


def test_the_published_model_wins_over_what_a_demo_task_brings_along():
    built = made("finetune", "task=demo_sentiment", "init=openai")
    assert (built.model.n_layer, built.tokenizer.name, built.lr) == (12, "openai", 6.25e-5)
    plain = made("finetune", "task=demo_sentiment")
    assert (plain.init, plain.model.name, plain.tokenizer.name) == ("none", "tiny", "demo")
    assert made("pretrain", "corpus=demo", "tokenizer=openai").tokenizer.name == "openai"


def test_an_init_that_is_no_checkpoint_is_refused(tmp_path):
    assert "init=nowhere: no such folder" in refusal("finetune", "task=rte", "init=nowhere")
    folder = checkpoint(tmp_path / "start")
    (folder / "config.json").write_text("{")
    assert "is no whole JSON" in refusal("finetune", "task=rte", "init=start")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_home_is_expanded_and_shared_places_are_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPT1_HUB", "mirror")
    run = composed("pretrain", "out=~/runs", "corpus=text", "corpus.path=~/books")
    home = tmp_path / "home"
    assert (run.config.out, run.config.corpus.path) == (f"{home}/runs", f"{home}/books")
    assert (run.config.cache, run.config.hub) == (f"{home}/.cache/gpt1", f"{tmp_path}/mirror")
    assert run.folder.parent == home / "runs" / "pretrain" / "text"
    assert composed("pretrain", "hydra.run.dir=there/${seed}", "seed=5").folder == tmp_path / "there" / "5"
    assert made("pretrain", "out=there").out == "there"
