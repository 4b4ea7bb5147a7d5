"""gpt1 export: a run's model as a folder that transformers loads."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1cli.config.commands import ExportConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import Need
from gpt1cli.evaluation import predictor
from gpt1cli.models.heads import Classifier
from gpt1cli.pretrained import hf_config, load, locate
from gpt1cli.pretrained.hf_weights import last_norm, to_published, write_published
from gpt1cli.runs.files import appearing, read_config, read_json, read_jsonl
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import environment
from gpt1cli.text.bpe import SPECIAL

TEXT_RULES = {  # by what the tokenizer's symbols are parts of
    "words": "AutoTokenizer of transformers 5 does not apply the published text rules (ftfy, standardisation, spaCy)"
    " and gives other ids; tokenise with gpt1, as in gpt1cli.load(FOLDER).",
    "bytes": "AutoTokenizer of transformers gives the same ids, but takes the letters <|endoftext|> in a text for the"
    " entry of that name, which gpt1 does not.",
}


def needs(config: ExportConfig) -> list[Need]:
    """Nothing from outside; UserError where the folder to write is taken, or no class of transformers fits."""
    target = Path(config.out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"out={config.out}: already there; name a folder that does not exist yet, or an empty one")
    origin = locate.find(config.run, "run")
    if (origin / "config.json").is_file() and hf_config.is_transformers(read_json(origin / "config.json")):
        raise UserError(f"run={config.run}: transformers reads this folder as it is; copy it")
    about = locate.described(origin)
    hf_config.settings_of(build(ModelConfig, about["model"]), about["vocabulary"])
    if has_head(about):
        class_of(build(TaskConfig, about["task"]))
    return []


def run(config: ExportConfig, folder: Path) -> None:
    """Weights under transformers' names, its config.json, the tokenizer's two files and a model card."""
    origin = locate.find(config.run, "run")
    described = locate.described(origin)
    if has_head(described):
        task = build(TaskConfig, described["task"])
        model, vocabulary = predictor.load_tuned(origin)
        assert isinstance(model, Classifier)
        (weights, norm_bias), suffix = head_and_body(model), class_of(task)
        names = output_names(task)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        # The state is read at the rightmost token that is no padding: `_classify_`, behind which entry 0 never stands.
        extra: dict[str, Any] = {"pad_token_id": 0} | (labels if suffix == CLASSIFIER else {})
        special = {name: len(vocabulary) + i for i, name in enumerate(SPECIAL)}
    else:
        body, vocabulary = load.load(str(origin), config.hub, config.cache)
        special = {}  # a language model does without
        body.tokens.weight.data = body.tokens.weight.data[: len(vocabulary)]
        weights, suffix, extra, norm_bias = to_published(dict(body.named_parameters())), LANGUAGE_MODEL, {}, None
    if vocabulary.opening is not None:
        extra |= {"bos_token_id": vocabulary.opening, "eos_token_id": vocabulary.opening}

    rows = len(vocabulary) + len(special)
    counts = {"vocabulary": len(vocabulary), "special_rows": len(special)}
    ours = {**described, **counts, "special_tokens": special}
    shape = hf_config.settings_of(build(ModelConfig, described["model"]), rows)
    kind = hf_config.CLASSES[shape["model_type"]] + suffix
    settings = {
        **shape,
        "architectures": [kind],
        **extra,
        hf_config.OURS: ours,
    }
    with appearing(Path(config.out).absolute()) as aside:
        write_published(aside / "model.safetensors", weights, norm_bias)
        (aside / "config.json").write_text(json.dumps(settings, indent=1))
        vocabulary.save(aside)
        reads, rules = input_of(described), TEXT_RULES[vocabulary.level]
        (aside / "README.md").write_text(card(config.run, origin, kind, special, reads, rules))
    about = {"status": "finished", "command": "export", "name": config.name}
    finish(folder, {**about, "run": config.run, "class": kind})
    print(f"{kind}: {config.out}")
    if "task" in described and suffix == LANGUAGE_MODEL:
        print("note: it was fine-tuned through a prompt and has no head: README.md there says how to ask it")
    print(f"note: {rules}", file=sys.stderr)


# --- which class of transformers computes the same --------------------------------------------------------------------

# behind OpenAIGPT or GPT2: published.CLASSES
LANGUAGE_MODEL, CLASSIFIER, CHOICE = "LMHeadModel", "ForSequenceClassification", "DoubleHeadsModel"


def has_head(described: Mapping[str, Any]) -> bool:
    """Whether the model of a checkpoint was fine-tuned with a linear layer on top."""
    return "task" in described and described.get("method", "head") == "head"


def class_of(task: TaskConfig) -> str:
    """The class for a fine-tuned run, without what is before it. UserError where transformers has none."""
    if task.layout == "similarity":
        raise UserError(
            f"task={task.name} adds the states of both orders of a pair, which no class of transformers does;"
            " export the run it was started from instead"
        )
    return CHOICE if task.choices else CLASSIFIER


def output_names(task: TaskConfig) -> list[str]:
    """Names for what the head of a classification gives: its classes, the levels of a score, or the score itself."""
    if task.loss == "ordinal" and task.range:
        return [str(level) for level in range(task.range[0], task.range[1] + 1)]
    return task.labels or ["score"]


def head_and_body(model: Classifier) -> tuple[dict[str, Tensor], Tensor | None]:
    """The weights of a fine-tuned model under transformers' names, and what the last norm's bias was if it changed.

    Its classifier has no bias c. The last norm's bias b takes it in: W (z + b') = W (z + b) + c with b' = b + W^+ c,
    where W^+ is the pseudo-inverse; labels are at most as many as hidden units, so that W W^+ c = c. What b was is
    kept in the file's metadata, and put back where gpt1 starts from the folder.
    """
    body = dict(model.body.named_parameters())
    if model.choice:
        head = {
            "multiple_choice_head.summary.weight": model.head.weight.detach(),
            "multiple_choice_head.summary.bias": model.head.bias.detach(),
        }
        return {**to_published(body), **head}, None
    last = last_norm(body)
    weight, bias = model.head.weight.detach().double(), model.head.bias.detach().double()
    shift = torch.linalg.pinv(weight) @ bias
    shifted = {**body, last: (body[last].detach().double() + shift).float()}
    return {**to_published(shifted), "score.weight": model.head.weight.detach().contiguous()}, body[last]


# --- the model card ---------------------------------------------------------------------------------------------------


def results_of(home: Path, origin: Path) -> dict[str, dict[str, float]]:
    """What was measured of this very checkpoint: split -> metrics; of the run's other splits where it is the best."""
    if not origin.name.isdigit():
        return {}
    step, found = int(origin.name), {}
    if (home / "metrics.jsonl").is_file():
        for line in read_jsonl(home / "metrics.jsonl"):
            if line.get("step") == step and line.get("split") != "train":
                found[line["split"]] = {m: v for m, v in line.items() if m not in ("step", "split", "seconds")}
    if (home / "result.json").is_file():
        result = read_json(home / "result.json")
        if step == result.get("best_step", result.get("steps")):  # fine-tuning scores its best checkpoint at the end
            splits = result.get("examples", ["valid"])
            found |= {split: result[split] for split in splits if split in result}
    return found


INPUTS = {  # layout -> what a row of token ids holds
    "single": "`_start_`, the text, `_classify_`.",
    "pair": "`_start_`, the first text, `_delimiter_`, the second text, `_classify_`.",
    "choice": "for each answer a row `_start_`, the texts, `_delimiter_`, the answer, `_classify_`, whose place is its"
    " `mc_token_ids`.",
    "pronoun": "for each candidate a row `_start_`, what stands before the pronoun, `_delimiter_`, the candidate and"
    " the rest, `_classify_`, whose place is its `mc_token_ids`.",
}


def input_of(described: Mapping[str, Any]) -> str | None:
    """What a fine-tuned model reads."""
    if "task" not in described:
        return None
    if has_head(described):
        return INPUTS[described["task"]["layout"]]
    task = build(TaskConfig, described["task"])
    prompt, shown = task.prompt, described.get("demonstrations")
    words = "; ".join(f"{label}: {', '.join(prompt.alternatives(label))}" for label in prompt.words)
    filled = f"with a label's words in the place of {{label}} ({words})" if words else "with each answer as {label}"
    told = [
        f"the prompt `{prompt.template}`, {filled}, each text and each part tokenised by itself.",
        f"A label's score is the {prompt.normalise} of the log-probabilities of its words and of what follows them;",
        "the highest is the answer." if task.classes else "their softmax weighs the two ends of the range.",
        "This class has no head: it gives the logits of the next token, from which the scores follow.",
    ]
    if shown:
        told.append(f"Before it stood in training one of {len(shown['examples'])} examples for each class.")
    return " ".join(told)


def card(run: str, origin: Path, kind: str, special: Mapping[str, int], reads: str | None, rules: str) -> str:
    """README.md of an exported folder: input, data, settings, results, command, limits."""
    which = "GPT-2" if kind.startswith(hf_config.CLASSES[hf_config.MODEL_TYPE_2]) else "GPT-1"
    home = origin.parent.parent if origin.parent.name == "checkpoints" else origin
    settings = (home / "config.yaml").read_text() if (home / "config.yaml").is_file() else "unknown\n"
    name = read_config(home / "config.yaml").get("name") if (home / "config.yaml").is_file() else origin.name
    command = shlex.join(["gpt1", *environment(home).get("command_line", ["(unknown)"])])
    found = results_of(home, origin)
    scores = [f"- {split}: {', '.join(f'{m} {v:.4g}' for m, v in values.items())}" for split, values in found.items()]
    rows = ", ".join(f"`{name}` is {index}" for name, index in special.items())
    tokens = f"Its special tokens are rows of the embedding and no entries of vocab.json: {rows}." if rows else ""
    if reads:
        tokens += f"\n\nInput: {reads}"
    lines = [
        "---\nlibrary_name: transformers\ntags: [gpt1]\n---",
        f"# {name}",
        f"A {which} trained by gpt1 (checkpoint {origin.name}), for `{kind}` of transformers. {tokens}".strip(),
        "## Command",
        f"    {command}",
        "## Results",
        "\n".join(scores) or "This checkpoint was not scored.",
        "## Data and settings",
        "    " + settings.rstrip().replace("\n", "\n    "),
        "## Limits",
        f"- {rules}\n- It says what its training data made likely, true or not, and was tested on nothing but the"
        " above.",
    ]
    return "\n\n".join(lines) + "\n"
