"""One file per command: the whole story of that run on one screen. Imported by name, when the command is chosen."""

COMMANDS: dict[str, str] = {
    "prepare": "gpt1cli.commands.prepare",
    "pretrain": "gpt1cli.commands.pretrain",
    "finetune": "gpt1cli.commands.finetune",
    "evaluate": "gpt1cli.commands.evaluate",
    "export": "gpt1cli.commands.export",
    "score": "gpt1cli.commands.score",
    "generate": "gpt1cli.commands.generate",
    "bench": "gpt1cli.commands.bench",
    "doctor": "gpt1cli.commands.doctor",
    "report": "gpt1cli.commands.report",
}
