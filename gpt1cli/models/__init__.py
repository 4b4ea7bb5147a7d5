"""Tokens to hidden states, and the heads on top."""

from gpt1cli.models.transformer import Transformer

ARCHITECTURES = {"transformer": Transformer}
