"""gpt1 generate: continue a prompt with a language model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt1cli.config.commands import GenerateConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Requirement
from gpt1cli.models.sampling import generate_tokens, greedy, sampler
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_requirements
from gpt1cli.runs.files import append_jsonl
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import update_environment
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoded from bytes that are not a (complete) character


def needs(config: GenerateConfig) -> list[Requirement]:
    """Return what the run requires before it starts."""
    return init_requirements(config.init)


def run(config: GenerateConfig, folder: Path) -> None:
    """Prompt -> tokens, printed as they are generated (several samples: at the end) -> generated.jsonl."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    model, tokenizer = load.load_language_model(config.init, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    prompt = tokenizer.encode(config.prompt)
    if not prompt:
        raise UserError(f"prompt={config.prompt} has no tokens; the model has no start token, so the prompt needs text")

    generator = torch.Generator(machine.device).manual_seed(config.seed)
    choose_token = sampler(config.temperature, config.top_k, config.top_p, generator) if config.temperature else greedy
    start_time = time.perf_counter()
    if config.samples == 1:
        steps = generate_tokens(model, prompt, 1, config.tokens, choose_token, len(tokenizer))
        samples = [list(print_stream(tokenizer, prompt, (step[0] for step in steps)))]
    else:
        samples, batch_size = [], machine.micro_batch or config.samples
        while count := min(batch_size, config.samples - len(samples)):
            steps = generate_tokens(model, prompt, count, config.tokens, choose_token, len(tokenizer))
            samples += [list(sample) for sample in zip(*steps, strict=True)]
        for number, sample in enumerate(samples, start=1):
            print(f"--- {number}\n{tokenizer.decode([*prompt, *sample])}")
    seconds = time.perf_counter() - start_time

    lines = [
        {"prompt": config.prompt, "text": tokenizer.decode([*prompt, *sample]), "tokens": sample} for sample in samples
    ]
    for line in lines:
        append_jsonl(folder / "generated.jsonl", line)
    summary = {"status": "finished", "command": "generate", "name": config.name, "seed": config.seed}
    speed = config.samples * config.tokens / seconds
    finish_run(folder, {**summary, "seconds": round(seconds, 3), "tokens_per_second": round(speed, 1)})
    print(f"{speed:.1f} tokens/s; {folder / 'generated.jsonl'}", file=sys.stderr)


def print_stream(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[int]:
    """Yield the tokens and print prompt and text as they are generated."""
    ids, text = list(prompt), tokenizer.decode(prompt)
    print(text, end="", flush=True)
    for token in tokens:
        ids.append(token)
        # A blank is decoded with the word after it, a character with its last byte: printed text never changes.
        new_text = tokenizer.decode(ids).rstrip(REPLACEMENT)
        print(new_text[len(text) :], end="", flush=True)
        text = new_text
        yield token
    print(tokenizer.decode(ids)[len(text) :])
