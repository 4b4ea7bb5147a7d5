"""A model as it is: prompts scored behind the same demonstrations, and text generated."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from gpt1cli.bench.contest import Contender, Contest, Job, Setting
from gpt1cli.bench.training import V, model_config, their_model
from gpt1cli.models.inference import log_probabilities_behind, token_log_probabilities
from gpt1cli.models.sampling import continued, greedy
from gpt1cli.models.transformer import Transformer
from gpt1cli.training.device import TOKEN_BUDGET

HERE = __name__


def score(setting: Setting) -> Iterable[Contest]:
    """16 queries of 20 tokens behind the same 400, base in bf16."""
    size = {"device": setting.device, "model": "base", "shared": 400, "queries": 16, "length": 20}
    contenders = [
        Contender("gpt1", f"{HERE}:our_scores", {**size, "kept": True}, tuned=True),
        Contender("gpt1, whole rows", f"{HERE}:our_scores", {**size, "kept": False}, tuned=True),
    ]
    contenders += [Contender("transformers bf16", f"{HERE}:their_scores", size)] if setting.peer else []
    yield Contest("score, few-shot prompts", "queries", contenders, {"gpt1, whole rows": 8})


def generate(setting: Setting) -> Iterable[Contest]:
    """64 tokens behind a prompt of 64, greedy, base."""
    size = {"device": setting.device, "model": "base", "prompt": 64, "tokens": 64}

    def ours(name: str, precision: str, samples: int) -> Contender:
        return Contender(name, f"{HERE}:our_text", {**size, "precision": precision, "samples": samples}, tuned=True)

    theirs = [Contender("transformers fp32", f"{HERE}:their_text", size)] if setting.peer else []
    for name, precision, samples, floor in (
        ("generate, bf16", "bf16", 1, 11),
        ("generate, fp32", "fp32", 1, 5),
        ("generate, 8 samples, bf16", "bf16", 8, 50),
    ):
        yield Contest(name, "tokens", [ours("gpt1", precision, samples), *theirs], {"transformers fp32": floor})


def our_model(device: str, model: str, precision: str) -> Transformer:
    """Fresh weights in evaluation mode."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return Transformer(model_config(model, 0.0), V).to(device, dtype).eval()


def our_scores(device: str, model: str, shared: int, queries: int, length: int, kept: bool) -> Job:
    """Log-probabilities of the queries' tokens; with `kept` the prefix is read once."""
    body, draw = our_model(device, model, "bf16"), np.random.default_rng(0)

    def job() -> float:
        prefix = draw.integers(0, V, shared).astype(np.int32)
        endings = [draw.integers(0, V, length).astype(np.int32) for _ in range(queries)]
        if kept:
            log_probabilities_behind(body, prefix, endings, None, TOKEN_BUDGET[device])
        else:
            rows = [np.concatenate([prefix, ending]) for ending in endings]
            token_log_probabilities(body, rows, None, TOKEN_BUDGET[device])
        return queries

    return job


def our_text(device: str, model: str, prompt: int, tokens: int, precision: str, samples: int) -> Job:
    """Greedy continuations of one prompt."""
    body, draw = our_model(device, model, precision), np.random.default_rng(0)

    def job() -> float:
        written = list(continued(body, draw.integers(0, V, prompt).tolist(), samples, tokens, greedy, V))
        return samples * len(written)

    return job


@torch.inference_mode()
def their_scores(device: str, model: str, shared: int, queries: int, length: int) -> Job:
    """Logits of whole rows, in batches of four, under autocast."""
    theirs, draw = their_model("OpenAIGPTLMHeadModel", model, 0.0).to(device).eval(), np.random.default_rng(0)

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


def their_text(device: str, model: str, prompt: int, tokens: int) -> Job:
    """Its own generate, greedy."""
    theirs, draw = their_model("OpenAIGPTLMHeadModel", model, 0.0).to(device).eval(), np.random.default_rng(0)

    def job() -> float:
        ids = torch.from_numpy(draw.integers(1, V, (1, prompt))).to(device)
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return tokens

    return job
