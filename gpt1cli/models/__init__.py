"""Tokens to hidden states, and the heads on top."""

from gpt1cli.groups import ModelConfig
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer

ARCHITECTURES: dict[str, type[LanguageModel]] = {"transformer": Transformer, "lstm": LSTM}


def fresh(config: ModelConfig, vocabulary: int) -> LanguageModel:
    """A model of the configuration's architecture and shape, with fresh weights."""
    return ARCHITECTURES[config.architecture](config, vocabulary)
