"""gpt1 generate: text that a language model goes on with."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt1cli.config.commands import GenerateConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Need
from gpt1cli.models.sampling import continued, greedy, sampling
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_needs
from gpt1cli.runs.files import append_jsonl
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what bytes are decoded to that are no character, or none yet


def needs(config: GenerateConfig) -> list[Need]:
    """What must be at hand before the run starts."""
    return init_needs(config.init)


def run(config: GenerateConfig, folder: Path) -> None:
    """Prompt -> tokens, printed as they come (several samples one after the other) -> generated.jsonl."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    model, vocabulary = load.load(config.init, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    prompt = vocabulary.encode(config.prompt)
    if not prompt:
        raise UserError(f"prompt={config.prompt}: no token in it; the model has no start token to begin with")

    generator = torch.Generator(machine.device).manual_seed(config.seed)
    choose = sampling(config.temperature, config.top_k, config.top_p, generator) if config.temperature else greedy
    began = time.perf_counter()
    if config.samples == 1:
        steps = continued(model, prompt, 1, config.tokens, choose, len(vocabulary))
        samples = [list(printed(vocabulary, prompt, (step[0] for step in steps)))]
    else:
        samples, at_once = [], machine.micro_batch or config.samples
        while left := min(at_once, config.samples - len(samples)):
            steps = continued(model, prompt, left, config.tokens, choose, len(vocabulary))
            samples += [list(sample) for sample in zip(*steps, strict=True)]
        for number, sample in enumerate(samples, start=1):
            print(f"--- {number}\n{vocabulary.decode([*prompt, *sample])}")
    seconds = time.perf_counter() - began

    lines = [{"prompt": config.prompt, "text": vocabulary.decode([*prompt, *s]), "tokens": s} for s in samples]
    for line in lines:
        append_jsonl(folder / "generated.jsonl", line)
    about = {"status": "finished", "command": "generate", "name": config.name, "seed": config.seed}
    speed = config.samples * config.tokens / seconds
    finish(folder, {**about, "seconds": round(seconds, 3), "tokens_per_second": round(speed, 1)})
    print(f"{speed:.1f} tokens/s; {folder / 'generated.jsonl'}", file=sys.stderr)


def printed(vocabulary: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[int]:
    """The tokens as they come; the text, its prompt first, is printed along the way."""
    ids, text = list(prompt), vocabulary.decode(prompt)
    print(text, end="", flush=True)
    for token in tokens:
        ids.append(token)
        # The blank between two words comes with the second, and a character when its last byte is there: what is
        # printed stands.
        longer = vocabulary.decode(ids).rstrip(UNFINISHED)
        print(longer[len(text) :], end="", flush=True)
        text = longer
        yield token
    print(vocabulary.decode(ids)[len(text) :])
