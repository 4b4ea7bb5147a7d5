"""Benchmarks of gpt1 against other implementations. Each is a function (settings) -> contests, and a line here."""

from __future__ import annotations

BENCHMARKS: dict[str, str] = {  # bench what=
    "startup": "gpt1cli.bench.starting:startup",
    "tokenize": "gpt1cli.bench.tokenizing:tokenize",
    "pretrain": "gpt1cli.bench.training:pretrain",
    "finetune": "gpt1cli.bench.training:finetune",
    "choice": "gpt1cli.bench.training:choice",
    "score": "gpt1cli.bench.speaking:score",
    "generate": "gpt1cli.bench.speaking:generate",
    "scale": "gpt1cli.bench.scaling:scale",
}
