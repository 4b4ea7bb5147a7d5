"""Jobs to be measured, ours beside a peer's. A benchmark is a function (setting) -> contests, and a line here."""

from __future__ import annotations

BENCHMARKS: dict[str, str] = {  # bench what=
    "startup": "gpt1cli.benchmarks.starting:startup",
    "tokenize": "gpt1cli.benchmarks.tokenizing:tokenize",
    "pretrain": "gpt1cli.benchmarks.training:pretrain",
    "finetune": "gpt1cli.benchmarks.training:finetune",
    "choice": "gpt1cli.benchmarks.training:choice",
    "score": "gpt1cli.benchmarks.speaking:score",
    "generate": "gpt1cli.benchmarks.speaking:generate",
    "scale": "gpt1cli.benchmarks.scaling:scale",
}
