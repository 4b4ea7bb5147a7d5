"""Inference: scoring prompts with the same demonstrations, and generating text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from gpt1cli.bench.contest import BenchSettings, Candidate, Contest, Job
from gpt1cli.bench.training import V, model_config, peer_model
from gpt1cli.models.inference import continuation_log_probabilities, token_log_probabilities
from gpt1cli.models.sampling import generate_tokens, greedy
from gpt1cli.models.transformer import Transformer
from gpt1cli.training.device import TOKEN_BUDGET

HERE = __name__


def score(settings: BenchSettings) -> Iterable[Contest]:
    """Score 16 queries of 20 tokens after the same prefix of 400 tokens; base, bf16."""
    size = {"device": settings.device, "model": "base", "shared": 400, "queries": 16, "length": 20}
    candidates = [
        Candidate("gpt1", f"{HERE}:scoring_job", {**size, "shared_prefix": True}, tune_allocator=True),
        Candidate("gpt1, whole rows", f"{HERE}:scoring_job", {**size, "shared_prefix": False}, tune_allocator=True),
    ]
    candidates += [Candidate("transformers bf16", f"{HERE}:peer_scoring_job", size)] if settings.peer else []
    yield Contest("score, few-shot prompts", "queries", candidates, {"gpt1, whole rows": 8})


def generate(settings: BenchSettings) -> Iterable[Contest]:
    """Generate 64 tokens after a prompt of 64 tokens; greedy, base."""
    size = {"device": settings.device, "model": "base", "prompt": 64, "tokens": 64}

    def ours(name: str, precision: str, samples: int) -> Candidate:
        return Candidate(
            name, f"{HERE}:generation_job", {**size, "precision": precision, "samples": samples}, tune_allocator=True
        )

    theirs = [Candidate("transformers fp32", f"{HERE}:peer_generation_job", size)] if settings.peer else []
    for name, precision, samples, min_speedup in (
        ("generate, bf16", "bf16", 1, 11),
        ("generate, fp32", "fp32", 1, 5),
        ("generate, 8 samples, bf16", "bf16", 8, 50),
    ):
        yield Contest(name, "tokens", [ours("gpt1", precision, samples), *theirs], {"transformers fp32": min_speedup})


def evaluation_model(device: str, model: str, precision: str) -> Transformer:
    """A model with random weights in evaluation mode."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return Transformer(model_config(model, 0.0), V).to(device, dtype).eval()


def scoring_job(device: str, model: str, shared: int, queries: int, length: int, shared_prefix: bool) -> Job:
    """Log-probabilities of the tokens of the queries; with `shared_prefix` the prefix is processed only once."""
    body, draw = evaluation_model(device, model, "bf16"), np.random.default_rng(0)

    def job() -> float:
        prefix = draw.integers(0, V, shared).astype(np.int32)
        endings = [draw.integers(0, V, length).astype(np.int32) for _ in range(queries)]
        if shared_prefix:
            continuation_log_probabilities(body, prefix, endings, None, TOKEN_BUDGET[device])
        else:
            rows = [np.concatenate([prefix, ending]) for ending in endings]
            token_log_probabilities(body, rows, None, TOKEN_BUDGET[device])
        return queries

    return job


def generation_job(device: str, model: str, prompt: int, tokens: int, precision: str, samples: int) -> Job:
    """Greedy continuations of a prompt."""
    body, draw = evaluation_model(device, model, precision), np.random.default_rng(0)

    def job() -> float:
        steps = list(generate_tokens(body, draw.integers(0, V, prompt).tolist(), samples, tokens, greedy, V))
        return samples * len(steps)

    return job


@torch.inference_mode()
def peer_scoring_job(device: str, model: str, shared: int, queries: int, length: int) -> Job:
    """Log-probabilities by transformers: whole rows in batches of four, under autocast."""
    theirs, draw = peer_model("OpenAIGPTLMHeadModel", model, 0.0).to(device).eval(), np.random.default_rng(0)

    @torch.inference_mode()
    def job() -> float:
        prefix = draw.integers(0, V, shared)
        rows = torch.tensor([[*prefix, *draw.integers(0, V, length)] for _ in range(queries)], device=device)
        with torch.autocast(device, torch.bfloat16):
            for part in rows.split(4):
                log_p = theirs(part).logits[:, shared - 1 : -1].float().log_softmax(-1)
                log_p.gather(2, part[:, shared:, None])
        return queries

    return job


def peer_generation_job(device: str, model: str, prompt: int, tokens: int) -> Job:
    """Greedy text by transformers' own generate."""
    theirs, draw = peer_model("OpenAIGPTLMHeadModel", model, 0.0).to(device).eval(), np.random.default_rng(0)

    def job() -> float:
        ids = torch.from_numpy(draw.integers(1, V, (1, prompt))).to(device)
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return tokens

    return job
