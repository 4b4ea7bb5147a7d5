"""One file per command: the whole story of that run on one screen. Imported by name, when the command is chosen."""

COMMANDS: dict[str, str] = {  # gpt1cli.commands.<name> -> what it is about
    "prepare": "raw text -> token shards in the cache",
    "pretrain": "a language model on raw text (paper, sections 3.1 and 4.1)",
    "finetune": "a labelled task on top of a pretrained model (paper, sections 3.2, 3.3 and 4.1)",
    "ablation": "a study of many runs: a table or figure of the paper (alias: sweeps)",
    "evaluate": "a fine-tuned run scored on a split, or on a task with the same labels",
    "predict": "a fine-tuned run on new rows: labels with their probabilities",
    "export": "a run's model as a folder that transformers loads",
    "score": "how likely a language model finds each line of a file, token by token",
    "generate": "text that a language model goes on with",
    "zeroshot": "a task answered by a language model as it is, without training (paper, section 5)",
    "fewshot": "a task answered behind demonstrations in the context, without training",
    "search": "a prompt's words or its template found on a few examples (LM-BFF)",
    "bench": "our speed beside a peer's, measured in turn on this machine",
    "doctor": "what is at hand here, and the remedy for what is not",
    "report": "finished runs laid out as the tables and figures of the paper",
}
