"""What `gpt1 COMMAND --help` says, read from conf/*.yaml and the dataclasses; imports nothing heavy.

The yaml files of conf/ say which groups and defaults a command has, the dataclasses say what a key means.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt1cli.config import commands, options, schema

WIDTH = 100
EXAMPLES = {
    "prepare": (
        ("corpus=demo", "the built-in demo world, no network"),
        ("corpus=text corpus.path=books/ tokenizer=bpe tokenizer.merges=8000", "your files, merges trained on them"),
        ("corpus=wikitext hub=DIR", "from a folder laid out like the Hugging Face hub"),
    ),
    "pretrain": (
        ("model=tiny corpus=demo steps=200", "a first run, on any machine"),
        ("model=mini corpus=text corpus.path=books/ tokenizer=bpe tokenizer.merges=8000", "your own text"),
        (
            "dry_run=true plan.tokens=1.1e9 plan.tflops=400 plan.memory_gb=141 plan.devices=8",
            "the hours of the paper's run",
        ),
    ),
    "finetune": (
        ("task=rte", "the paper's recipe on the published weights"),
        ("task=sst2 init=outputs/pretrain/text/RUN limit.train=2000 steps=300", "on weights pretrained here"),
        ("-m task=cola,rte ablation=full,no_pretrain seed=0,1,2", "a sweep of twelve runs"),
    ),
    "ablation": (
        ("study=demo", "Table 5 and both figures on the demo world, no network: a quarter of an hour"),
        ("study=table5 init=openai tasks=[cola,rte] seeds=[0]", "a part of Table 5"),
        ("-m ablation=no_pretrain,lstm init=outputs/pretrain/text/RUN limit.train=2000", "a job for each variant"),
    ),
    "evaluate": (
        ("run=outputs/finetune/mnli/RUN", "every split of the run's own task"),
        ("run=outputs/finetune/mnli/RUN task=snli split=test", "a task with the same labels"),
        ("run=outputs/finetune/mnli/RUN task=ax", "predictions where there are no labels"),
    ),
    "predict": (
        ("run=outputs/finetune/sst2/RUN input=reviews.csv output=answers.csv", "every row of a file"),
        ('run=outputs/finetune/sst2/RUN text="what a film"', "one example"),
        ("run=outputs/finetune/sst2/RUN input=- format=text output=-", "from stdin to stdout"),
    ),
    "export": (
        ("run=outputs/pretrain/text/RUN out=my-gpt1", "a language model"),
        ("run=outputs/finetune/sst2/RUN out=my-sst2", "a classifier"),
        ("run=outputs/pretrain/text/RUN/checkpoints/1000 out=early", "one checkpoint of a run"),
    ),
    "score": (
        ("init=outputs/pretrain/text/RUN input=lines.txt", "every line of a file"),
        ("init=openai input=-", "lines from stdin, the published weights"),
        ("init=outputs/pretrain/text/RUN/checkpoints/1000 input=lines.txt", "an early checkpoint"),
    ),
    "generate": (
        ('init=outputs/pretrain/text/RUN prompt="once upon a time"', "a hundred tokens, printed as they come"),
        ('init=openai prompt="the sea" temperature=0.8 top_p=0.9', "less of what is unlikely"),
        ('init=openai prompt="the sea" samples=4 tokens=30 top_k=40', "four continuations"),
    ),
    "zeroshot": (
        ("task=sst2", "the paper's rule on the published weights"),
        ("task=cola init=outputs/pretrain/text/RUN checkpoint=all", "a curve over the checkpoints of a run"),
        ("task=race runs=[outputs/pretrain/text/A,outputs/pretrain/text/B] checkpoint=all", "two runs in one figure"),
    ),
    "fewshot": (
        ("task=sst2 shots=[0,1,2,4,8,16]", "a curve over demonstrations in the context, five seeds"),
        ("task=rte init=gpt2 shots=4 order=permutations", "GPT-2's published weights, the mean over orders"),
        ("task=snli shots=0 prompt=mine.yaml", "a prompt of your own: template, words"),
    ),
    "search": (
        ("task=sst2 init=outputs/pretrain/text/RUN what=words", "words for its labels, the best hundred fine-tuned"),
        ("task=snli init=outputs/pretrain/text/RUN what=templates tune=10", "cues that the model itself has written"),
        ("task=rte what=templates generator=t5 t5=google-t5/t5-base", "gaps around the label that a T5 has filled"),
    ),
    "bench": (
        ("peer=transformers", "everything, beside transformers: some twenty minutes on two cores"),
        ("what=[tokenize,generate] input=book.txt hub=DIR", "two jobs, on a text of your own"),
        ("what=[pretrain] peer=none rounds=3", "our own speed"),
    ),
    "doctor": (
        ("what=[machine,disk,hub,tasks]", "everything, as gpt1 doctor alone"),
        ("what=[tasks] hub=DIR", "which of them lie in a folder laid out like the Hugging Face hub"),
        ("what=[machine,disk] cache=DIR", "without the data, and with another cache"),
    ),
    "report": (
        ("runs=[outputs/finetune]", "every finished run below a folder"),
        ("runs=[outputs/pretrain/demo/RUN,outputs/finetune/rte/RUN]", "two runs"),
        ("runs=[outputs/multirun/finetune/*] submission=glue.zip", "all sweeps; what the GLUE server takes"),
    ),
}
FLAGS = {
    "-m, --multirun": "a run for every combination of values, as in seed=0,1,2",
    "--cfg job": "print what Hydra composes, run nothing (hydra, all: its own too)",
    "--info": "print where it comes from",
    "--config-dir DIR": "a folder of your own with further options, as in DIR/task/mine.yaml",
    "--config-name, --config-path": "another main file, another folder instead of conf/",
    "--shell-completion": 'for bash: eval "$(gpt1 --shell-completion install=bash)"',
    "--hydra-help, --version": "more of Hydra's flags; the version of gpt1",
}

# --- pages ------------------------------------------------------------------------------------------------------------


def page(command: str) -> str:
    """The page of `gpt1 COMMAND --help`: groups and their options, keys with meaning and default, examples."""
    cls = commands.COMMANDS[command].config
    groups, values = options.defaults(command)
    lines = [f"gpt1 {command}: {commands.COMMANDS[command].help}", ""]
    lines += [f"usage: gpt1 {command} [GROUP=OPTION ...] [KEY=VALUE ...] [-m]", "", "examples", *_examples(command)]
    for group, option in groups.items():
        optional = not schema.check(schema.annotation_of(cls, group), None, group)
        unnamed = "default: that of the run" if "run" in values else "default: none" if optional else "needed"
        lines += ["", f"{group}=OPTION ({f'default {option}' if option else unnamed})"]
        lines += _table(options.names(group).items())
    lines += ["", "keys", *_table(_keys(cls, "", values, groups))]
    for group, option in groups.items():
        if group in commands.GROUPS:
            lines += ["", f"keys of {group} (defaults: those of {group}={option})" if option else f"keys of {group}"]
            own = options.values(group, option) if option else None
            lines += _table(_keys(commands.GROUPS[group], f"{group}.", own, {}))
    return "\n".join([*lines, "", "flags", *_table(FLAGS.items()), ""])


def _examples(command: str) -> Iterator[str]:
    for words, meaning in EXAMPLES[command]:
        yield f"  gpt1 {command} {words}"
        yield f"      {meaning}"


def _keys(cls: type, prefix: str, values: Any, groups: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    """(key=default, meaning and type) of every key of a dataclass, but for the keys of its groups."""
    for name, annotation in schema.fields_of(cls).items():
        if name in groups:
            continue
        value = values.get(name) if values is not None else None
        if dataclasses.is_dataclass(bare := schema.unwrap(annotation)):
            yield from _keys(typing.cast(type, bare), f"{prefix}{name}.", value, {})
            continue
        key = schema.key_of(annotation)
        default = f"={_default(value)}" if values is not None else ""
        yield f"{prefix}{name}{default}", f"{key.meaning} [{_kind(annotation)}]"


def _kind(annotation: Any) -> str:
    """The type and the range of a key, in few words."""
    key = schema.key_of(annotation)
    bounds = (("above", key.above), ("at least", key.at_least), ("at most", key.at_most), ("below", key.below))
    ranges = [f"{word} {bound:g}" for word, bound in bounds if abs(bound) < 2**53]
    return ", ".join([schema.describe(annotation), *ranges])


def _default(value: Any) -> str:
    """A default as a user would write it; where it follows another key or the environment, that one."""
    if isinstance(value, list):
        return f"[{','.join(map(_default, value))}]"
    if isinstance(value, str) and (environment := re.fullmatch(r"\$\{oc\.env:(\w+),\"?(.*?)\"?\}", value)):
        return f"${environment[1]} or {environment[2]}"
    return schema.display(value)


def _table(rows: Any) -> Iterator[str]:
    """Two aligned columns, the second one wrapped."""
    rows = list(rows)
    left = min(34, max(len(name) for name, _ in rows)) + 2
    for name, meaning in rows:
        lines = textwrap.wrap(meaning, WIDTH - 2 - left) or [""]
        if len(name) > left - 2:  # a long name has a line of its own
            yield f"  {name}"
            name = ""
        yield f"  {name:{left}}{lines[0]}".rstrip()
        yield from (" " * (left + 2) + line for line in lines[1:])


# --- shell completion -------------------------------------------------------------------------------------------------


def candidates(command: str, word: str, folders: typing.Iterable[Path]) -> list[str]:
    """What a word that is being typed may become: keys and groups, and behind `=` options, values or files."""
    cls = commands.COMMANDS[command].config
    key, is_value, start = word.partition("=")
    if not is_value:
        groups = [f"{group}=" for group in options.defaults(command)[0]]
        keys = [name.partition("=")[0] + "=" for name, _ in _keys(cls, "", None, {})]
        names = [name for name in [*groups, *keys] if name.startswith(word)]
        ends = [name.find(".", len(word)) + 1 or len(name) for name in names]  # one level of keys at a time
        return sorted({name[:end] for name, end in zip(names, ends, strict=True)})
    annotation = schema.annotation_of(cls, key)
    if key in options.defaults(command)[0]:
        values = [path.stem for folder in folders for path in (folder / key).glob("*.yaml")]
    elif typing.get_origin(schema.unwrap(annotation)) is typing.Literal:
        values = list(typing.get_args(schema.unwrap(annotation)))
    elif annotation is None or schema.check(annotation, "text", key):
        values = [] if annotation is None or schema.check(annotation, True, key) else ["true", "false"]
    else:
        paths = glob.glob(glob.escape(start) + "*")
        values = [path + "/" if os.path.isdir(path) else path for path in paths]
    return sorted({f"{key}={value}" for value in values if value.startswith(start)})


def front_page() -> str:
    """The page of `gpt1 --help`."""
    return "\n".join(
        [
            "gpt1: generative pre-training and its transfer, one command per experiment",
            "",
            "usage: gpt1 COMMAND [GROUP=OPTION ...] [KEY=VALUE ...] [-m]",
            "       gpt1 COMMAND --help",
            "",
            "commands",
            *_columns({name: command.help for name, command in commands.COMMANDS.items()}),
            "",
            "examples",
            *(f"  gpt1 {name} {words}" for name, examples in EXAMPLES.items() for words, _ in examples[:1]),
            "",
            "flags",
            *_columns(FLAGS),
            "",
        ]
    )


def _columns(rows: dict[str, str]) -> list[str]:
    """Two aligned columns."""
    left = max(map(len, rows))
    return [f"  {name:{left}}  {meaning}" for name, meaning in rows.items()]
