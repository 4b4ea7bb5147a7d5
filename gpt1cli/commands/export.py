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
from gpt1cli.data.hub import Requirement
from gpt1cli.evaluation import predictor
from gpt1cli.models.heads import Classifier
from gpt1cli.pretrained import hf_config, load, locate
from gpt1cli.pretrained.hf_weights import last_norm_bias_name, to_published, write_published
from gpt1cli.runs.files import atomic_folder, read_config, read_json, read_jsonl
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import read_environment
from gpt1cli.text.bpe import SPECIAL

TEXT_RULES = {  # tokenizer level -> how the tokenizer of transformers differs
    "words": "AutoTokenizer of transformers 5 does not apply the published text rules (ftfy, standardisation, spaCy)"
    " and gives other ids. Tokenise with gpt1: gpt1cli.load(FOLDER).",
    "bytes": "AutoTokenizer of transformers gives the same ids, with one difference: it reads the characters"
    " <|endoftext|> in a text as the special token; gpt1 reads them as text.",
}


def needs(config: ExportConfig) -> list[Requirement]:
    """Require nothing. Raises UserError if out= is in use or transformers has no class for the model."""
    target = Path(config.out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"out={config.out} already exists; choose a new or an empty folder")
    source = locate.resolve_checkpoint(config.run, "run")
    if (source / "config.json").is_file() and hf_config.is_transformers(read_json(source / "config.json")):
        raise UserError(f"run={config.run}: transformers already reads this folder; copy it instead")
    checkpoint = locate.read_checkpoint_config(source)
    hf_config.transformers_config(build(ModelConfig, checkpoint["model"]), checkpoint["vocabulary"])
    if has_head(checkpoint):
        transformers_class_suffix(build(TaskConfig, checkpoint["task"]))
    return []


def run(config: ExportConfig, folder: Path) -> None:
    """Checkpoint -> weights with transformers' names, config.json, tokenizer files and a model card."""
    source = locate.resolve_checkpoint(config.run, "run")
    checkpoint = locate.read_checkpoint_config(source)
    if has_head(checkpoint):
        task = build(TaskConfig, checkpoint["task"])
        model, tokenizer = predictor.load_fine_tuned(source)
        assert isinstance(model, Classifier)
        (weights, norm_bias), suffix = classifier_weights(model), transformers_class_suffix(task)
        names = output_names(task)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        # transformers reads the state at the last token that is not padding: `_classify_`, which id 0 never follows.
        extra: dict[str, Any] = {"pad_token_id": 0} | (labels if suffix == CLASSIFIER else {})
        special = {name: len(tokenizer) + i for i, name in enumerate(SPECIAL)}
    else:
        body, tokenizer = load.load_language_model(str(source), config.hub, config.cache)
        special = {}  # a language model needs none
        body.tokens.weight.data = body.tokens.weight.data[: len(tokenizer)]
        weights, suffix, extra, norm_bias = to_published(dict(body.named_parameters())), LANGUAGE_MODEL, {}, None
    if tokenizer.document_separator is not None:
        extra |= {"bos_token_id": tokenizer.document_separator, "eos_token_id": tokenizer.document_separator}

    vocabulary_size = len(tokenizer) + len(special)
    counts = {"vocabulary": len(tokenizer), "special_rows": len(special)}
    gpt1_settings = {**checkpoint, **counts, "special_tokens": special}
    shape = hf_config.transformers_config(build(ModelConfig, checkpoint["model"]), vocabulary_size)
    class_name = hf_config.CLASS_PREFIXES[shape["model_type"]] + suffix
    settings = {
        **shape,
        "architectures": [class_name],
        **extra,
        hf_config.EXPORT_KEY: gpt1_settings,
    }
    with atomic_folder(Path(config.out).absolute()) as out:
        write_published(out / "model.safetensors", weights, norm_bias)
        (out / "config.json").write_text(json.dumps(settings, indent=1))
        tokenizer.save(out)
        model_input, text_rules = describe_input(checkpoint), TEXT_RULES[tokenizer.level]
        (out / "README.md").write_text(model_card(config.run, source, class_name, special, model_input, text_rules))
    summary = {"status": "finished", "command": "export", "name": config.name}
    finish_run(folder, {**summary, "run": config.run, "class": class_name})
    print(f"{class_name}: {config.out}")
    if "task" in checkpoint and suffix == LANGUAGE_MODEL:
        print(
            "note: the model was fine-tuned with a prompt and has no head; its README.md describes how to score labels"
        )
    print(f"note: {text_rules}", file=sys.stderr)


# --- the class of transformers ----------------------------------------------------------------------------------------

# suffixes of class names, after hf_config.CLASS_PREFIXES
LANGUAGE_MODEL, CLASSIFIER, CHOICE = "LMHeadModel", "ForSequenceClassification", "DoubleHeadsModel"


def has_head(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the model of a checkpoint has a linear layer on top."""
    return "task" in checkpoint and checkpoint.get("method", "head") == "head"


def transformers_class_suffix(task: TaskConfig) -> str:
    """Return the suffix of the class for a fine-tuned run. Raises UserError if transformers has no such class."""
    if task.layout == "similarity":
        raise UserError(
            f"task={task.name} adds the states of both orders of a pair; no class of transformers does that;"
            " export the run that init= named instead"
        )
    return CHOICE if task.choices else CLASSIFIER


def output_names(task: TaskConfig) -> list[str]:
    """Names of the outputs of a classification head: the classes, the levels of a score, or the score itself."""
    if task.loss == "ordinal" and task.range:
        return [str(level) for level in range(task.range[0], task.range[1] + 1)]
    return task.labels or ["score"]


def classifier_weights(model: Classifier) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return a fine-tuned model's weights with transformers' names, and the original bias of the last norm if changed.

    The classifier of transformers has no bias c. The bias b of the last norm absorbs it: W (z + b') = W (z + b) + c
    with b' = b + W^+ c, where W^+ is the pseudo-inverse; W W^+ c = c because there are at most as many labels as hidden
    units. The file's metadata keep the original b, which gpt1 restores when it loads the folder.
    """
    body = dict(model.body.named_parameters())
    if model.choice:
        head = {
            "multiple_choice_head.summary.weight": model.head.weight.detach(),
            "multiple_choice_head.summary.bias": model.head.bias.detach(),
        }
        return {**to_published(body), **head}, None
    bias_name = last_norm_bias_name(body)
    weight, bias = model.head.weight.detach().double(), model.head.bias.detach().double()
    shift = torch.linalg.pinv(weight) @ bias
    shifted = {**body, bias_name: (body[bias_name].detach().double() + shift).float()}
    return {**to_published(shifted), "score.weight": model.head.weight.detach().contiguous()}, body[bias_name]


# --- the model card ---------------------------------------------------------------------------------------------------


def checkpoint_results(run_folder: Path, source: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of this checkpoint by split; of all splits of the run if it is the best checkpoint."""
    if not source.name.isdigit():
        return {}
    step, metrics = int(source.name), {}
    if (run_folder / "metrics.jsonl").is_file():
        for line in read_jsonl(run_folder / "metrics.jsonl"):
            if line.get("step") == step and line.get("split") != "train":
                metrics[line["split"]] = {m: v for m, v in line.items() if m not in ("step", "split", "seconds")}
    if (run_folder / "result.json").is_file():
        result = read_json(run_folder / "result.json")
        if step == result.get("best_step", result.get("steps")):  # fine-tuning scores its best checkpoint at the end
            splits = result.get("examples", ["valid"])
            metrics |= {split: result[split] for split in splits if split in result}
    return metrics


INPUT_LAYOUTS = {  # layout -> the tokens of a row
    "single": "`_start_`, the text, `_classify_`.",
    "pair": "`_start_`, the first text, `_delimiter_`, the second text, `_classify_`.",
    "choice": "for each answer a row `_start_`, the texts, `_delimiter_`, the answer, `_classify_`; `mc_token_ids` is"
    " the position of `_classify_`.",
    "pronoun": "for each candidate a row `_start_`, the text before the pronoun, `_delimiter_`, the candidate and the"
    " text after the pronoun, `_classify_`; `mc_token_ids` is the position of `_classify_`.",
}


def describe_input(checkpoint: Mapping[str, Any]) -> str | None:
    """Describe the input of a fine-tuned model; None for a language model."""
    if "task" not in checkpoint:
        return None
    if has_head(checkpoint):
        return INPUT_LAYOUTS[checkpoint["task"]["layout"]]
    task = build(TaskConfig, checkpoint["task"])
    prompt, demonstrations = task.prompt, checkpoint.get("demonstrations")
    words = "; ".join(f"{label}: {', '.join(prompt.alternatives(label))}" for label in prompt.words)
    filling = f"with a label's words for {{label}} ({words})" if words else "with each answer for {label}"
    sentences = [
        f"the prompt `{prompt.template}`, {filling}; each text and each part of the template is tokenised separately.",
        f"A label's score is the {prompt.normalise} of the log-probabilities of its words and of the text after them;",
        "the label with the highest score is predicted."
        if task.is_classification
        else "the prediction is the mean of the two ends of the range, weighted by the softmax of the scores.",
        "This class has no head: it returns next-token logits, from which the scores are computed.",
    ]
    if demonstrations:
        sentences.append(
            f"In training one demonstration per class preceded it, from {len(demonstrations['examples'])} examples."
        )
    return " ".join(sentences)


def model_card(
    run: str,
    source: Path,
    class_name: str,
    special: Mapping[str, int],
    model_input: str | None,
    text_rules: str,
) -> str:
    """Return README.md of an exported folder: input, command, results, data and settings, limits."""
    architecture = "GPT-2" if class_name.startswith(hf_config.CLASS_PREFIXES[hf_config.GPT2_TYPE]) else "GPT-1"
    run_folder = source.parent.parent if source.parent.name == "checkpoints" else source
    settings = (run_folder / "config.yaml").read_text() if (run_folder / "config.yaml").is_file() else "unknown\n"
    name = (
        read_config(run_folder / "config.yaml").get("name") if (run_folder / "config.yaml").is_file() else source.name
    )
    command = shlex.join(["gpt1", *read_environment(run_folder).get("command_line", ["(unknown)"])])
    results = checkpoint_results(run_folder, source)
    scores = [f"- {split}: {', '.join(f'{m} {v:.4g}' for m, v in values.items())}" for split, values in results.items()]
    rows = ", ".join(f"`{name}` is {index}" for name, index in special.items())
    tokens = f"Its special tokens are rows of the embedding and not in vocab.json: {rows}." if rows else ""
    if model_input:
        tokens += f"\n\nInput: {model_input}"
    lines = [
        "---\nlibrary_name: transformers\ntags: [gpt1]\n---",
        f"# {name}",
        f"A {architecture} trained by gpt1 (checkpoint {source.name}), for `{class_name}` of"
        f" transformers. {tokens}".strip(),
        "## Command",
        f"    {command}",
        "## Results",
        "\n".join(scores) or "This checkpoint was not scored.",
        "## Data and settings",
        "    " + settings.rstrip().replace("\n", "\n    "),
        "## Limits",
        f"- {text_rules}\n- Its output follows its training data and may be false. It was evaluated only on the"
        " results above.",
    ]
    return "\n\n".join(lines) + "\n"
