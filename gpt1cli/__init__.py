"""gpt1: generative pre-training and transfer, from raw text to a fine-tuned model's metrics."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes a third of the time allowed for `gpt1 --help`
if TYPE_CHECKING:
    from gpt1cli.models.language_model import LanguageModel
    from gpt1cli.text.bpe import Tokenizer


def load(init: str | os.PathLike[str], hub: str | os.PathLike[str] | None = None) -> tuple[LanguageModel, Tokenizer]:
    """Load the model and tokenizer of `init`: `openai`, `gpt2`, a run, a checkpoint, an exported folder, npy shards.

    `tokenizer.encode(text) -> list[int]`, `tokenizer.decode(ids) -> str`, `model(tokens [B,T]) -> hidden [B,T,D]`,
    `model.logits(hidden) -> [B,T,V]`; evaluation mode, fp32, on the CPU; no global setting is changed. `hub` is a
    folder laid out like the Hugging Face hub, used instead of the network. Raises schema.UserError if init is invalid.
    """
    import torch

    from gpt1cli.pretrained import load as pretrained_load

    cache = os.path.expanduser(os.environ.get("GPT1_CACHE", "~/.cache/gpt1"))
    with torch.random.fork_rng(devices=[]):  # a model first gets random weights
        model, tokenizer = pretrained_load.load_language_model(os.fspath(init), os.fspath(hub) if hub else None, cache)
    return model.eval(), tokenizer
