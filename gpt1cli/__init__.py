"""gpt1: generative pre-training and its transfer, from raw text to a fine-tuned number."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs a third of what `gpt1 --help` may take
if TYPE_CHECKING:
    from gpt1cli.models.language_model import LanguageModel
    from gpt1cli.text.bpe import Tokenizer


def load(init: str | os.PathLike[str], hub: str | os.PathLike[str] | None = None) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer that `init` names: `openai`, `gpt2`, a run, a checkpoint, an exported folder, shards.

    `tokenizer.encode(text) -> list[int]`, `tokenizer.decode(ids) -> str`, `model(tokens [B,T]) -> hidden [B,T,D]`,
    `model.logits(hidden) -> [B,T,V]`; evaluation mode, fp32, on the CPU, no global setting touched. `hub` is a folder
    laid out like the Hugging Face hub, used instead of the network. schema.UserError says what is wrong with init.
    """
    import torch

    from gpt1cli.pretrained import load as pretrained_load

    cache = os.path.expanduser(os.environ.get("GPT1_CACHE", "~/.cache/gpt1"))
    with torch.random.fork_rng(devices=[]):  # a model is born with random weights before it gets its own
        model, vocabulary = pretrained_load.load(os.fspath(init), os.fspath(hub) if hub else None, cache)
    return model.eval(), vocabulary
