"""Template search: generate the text around the label slot from a few examples.

In LM-BFF (Gao et al. 2021, section 5.2) a T5 fills the masks around the label with one beam search for all training
examples together: at every step a text's score is its log-probability, summed over the examples. Here the causal model
itself generates in this way: a cue, which continues the examples' texts and stands before the label's words. A T5 can
be used instead, through transformers.

N examples, B texts in the beam, V vocabulary size, t generated tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.config.template import SLOT, parse_template
from gpt1cli.models.inference import device_of, prefill
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts.prompt import Prompt, pack_prompt
from gpt1cli.prompts.search import with_template
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_index
from gpt1cli.text.bpe import UNKNOWN, Tokenizer

if TYPE_CHECKING:
    from gpt1cli.models.transformer import KVCache

GeneratedIds = tuple[int, ...]
ScoreNext = Callable[[Sequence[GeneratedIds]], np.ndarray]  # texts of equal length -> log p of every next token, [B,V]
AllowNext = Callable[[GeneratedIds], np.ndarray]  # a text -> the tokens allowed next, bool [V]; all False: it has ended


class Hypothesis(NamedTuple):
    """A generated text and its log-probability: summed over its tokens, averaged over the examples."""

    ids: GeneratedIds
    total: float


def beam_search(score_next: ScoreNext, allow_next: AllowNext, width: int, length: int) -> Iterator[list[Hypothesis]]:
    """Yield the `width` likeliest texts of 1, 2, ..., `length` tokens, the likeliest first."""
    beam = [Hypothesis((), 0.0)]
    for _ in range(length):
        masks = [allow_next(one.ids) for one in beam]
        unfinished = [(one, mask) for one, mask in zip(beam, masks, strict=True) if mask.any()]
        if not unfinished:
            return
        log_p = score_next([one.ids for one, _ in unfinished])  # [B,V]
        before, allowed = np.array([[one.total] for one, _ in unfinished]), np.stack([mask for _, mask in unfinished])
        totals = np.where(allowed, before + log_p, -np.inf)  # [B,V]
        best = np.argsort(-totals, axis=None, kind="stable")[: min(width, int(allowed.sum()))]
        rows, tokens = np.unravel_index(best, totals.shape)
        beam = [
            Hypothesis((*unfinished[b][0].ids, int(v)), float(totals[b, v])) for b, v in zip(rows, tokens, strict=True)
        ]
        yield beam


# --- templates from the model itself ----------------------------------------------------------------------------------


def template_prefixes(task: TaskConfig) -> list[str]:
    """Template parts that a cue continues: all texts of an example, and the task's own prompt up to its last text."""
    names = {index: name for name, index in task.fields.items()}  # a text with several names keeps the task's own
    prefixes = [" ".join(f"{{{names[index]}}}" for index in sorted(names))]
    parts = parse_template(task.prompt.template or "")
    last = max((i for i, part in enumerate(parts) if part.is_field and part.text != SLOT), default=-1)
    if all(part.text != SLOT or not part.is_field for part in parts[: last + 1]):
        prefixes.append("".join(_template_text(*part) for part in parts[: last + 1]))
    return [prefix for prefix in dict.fromkeys(prefixes) if prefix]


def _template_text(text: str, is_field: bool) -> str:
    """A part of a template in template syntax: {field}, or a literal with doubled braces."""
    return f"{{{text}}}" if is_field else text.replace("{", "{{").replace("}", "}}")


def generate_templates(
    model: LanguageModel,
    task: TaskConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    width: int,
    length: int,
    token_budget: int,
) -> list[str]:
    """Templates that end with a cue and the slot: all cues of up to `length` tokens that were in the beam.

    A cue is kept if its text encodes to the same tokens again, so only cues that end with a whole word are kept.
    """
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    visible = np.array([bool(text.strip()) and text.strip() != UNKNOWN for text in texts])  # [V]
    templates: dict[str, None] = {}
    for prefix in template_prefixes(task):
        prompt = Prompt.from_task(with_template(task, f"{prefix} {{{SLOT}}}"), tokenizer)
        room = model.config.n_positions - length
        if room < 2:
            raise UserError(
                f"length={length} does not fit the model's n_positions={model.config.n_positions}: use a length of"
                f" {model.config.n_positions - 2} or less"
            )
        packed = [pack_prompt(prompt, [], query, room) for query in prompt.queries(examples)]
        contexts = [query.rows[0][: query.shared_length] for query in packed]
        score_next = _model_scorer(model, contexts, len(tokenizer), token_budget)
        steps = beam_search(score_next, lambda _: visible, width, length)
        for one in itertools.chain.from_iterable(steps):
            template = f"{prefix} {_template_text(tokenizer.decode(one.ids).strip(), False)} {{{SLOT}}}"
            if template not in templates and _tokenizes_to(task, template, tokenizer, one.ids):
                templates[template] = None
    return list(templates)


def _tokenizes_to(task: TaskConfig, template: str, tokenizer: Tokenizer, ids: GeneratedIds) -> bool:
    """Whether the text before a template's slot encodes to these tokens."""
    before = Prompt.from_task(with_template(task, template), tokenizer).before
    return bool(before) and before[-1] == list(ids)


def _model_scorer(
    model: LanguageModel, contexts: Sequence[Sequence[int]], vocabulary_size: int, token_budget: int
) -> ScoreNext:
    """A function that returns log p(token | context, generated text), the mean over the contexts, each read once."""
    kept: list[KVCache | None] = [prefill(model, context[:-1]) if len(context) > 1 else None for context in contexts]
    device, table = device_of(model), model.tokens.weight[:vocabulary_size].float()

    @torch.inference_mode()
    def log_probabilities(texts: Sequence[GeneratedIds]) -> np.ndarray:
        totals = torch.zeros(len(texts), vocabulary_size)
        for context, cache in zip(contexts, kept, strict=True):
            rows = torch.tensor([[context[-1], *ids] for ids in texts], device=device)  # [B,t+1]
            width = rows.shape[1] + (0 if cache is None else cache.length)
            parts = rows.split(max(1, token_budget // width))
            states = torch.cat([model(part, cache=cache)[:, -1] for part in parts])  # [B,D]
            totals += (states.float() @ table.T).log_softmax(-1).cpu()
        return (totals / len(contexts)).numpy()

    return log_probabilities


# --- templates from a T5 ----------------------------------------------------------------------------------------------

SENTINEL = "<extra_id_{}>"  # T5's sentinel tokens, which mark the masks
MAX_SOURCE_TOKENS = 384  # of an example's texts; T5 was trained on 512 tokens


def check_t5(t5: str, hub: str | None) -> None:
    """Raise UserError if a T5 is not available."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("generator=t5 needs transformers: pip install 'gpt1[t5]', or use generator=model") from None
    if hub is not None and not Path(hub, t5).is_dir() and not Path(t5).is_dir():
        raise UserError(f"t5={t5}: folder not found, neither {t5} nor {Path(hub, t5)} (hub={hub})")


def mask_placements(task: TaskConfig) -> list[tuple[list[int], list[int]]]:
    """The texts before and after the masks, as indices; the label stands between two masks (LM-BFF).

    One text stands before the masks, or after them. Two texts: one before and one after, or both before, which suits a
    causal model.
    """
    indices = sorted(set(task.fields.values()))
    return [(indices, []), ([], indices)] if len(indices) < 2 else [(indices[:1], indices[1:]), (indices, [])]


def generate_templates_with_t5(
    t5: str, hub: str | None, task: TaskConfig, examples: Sequence[Example], width: int, length: int, device: str
) -> list[str]:
    """Templates whose masks around the slot a T5 fills, the likeliest first, equally many for each mask placement."""
    model, tokenizer = _load_t5(t5, hub, device)
    first, second, third = (tokenizer.convert_tokens_to_ids(SENTINEL.format(n)) for n in range(3))
    ends = {third, tokenizer.eos_token_id}
    names = {index: name for name, index in task.fields.items()}
    templates: list[str] = []
    placements = mask_placements(task)
    for before, after in placements:
        score_next = _t5_scorer(model, tokenizer, task, examples, before, after, device)

        def allow_next(ids: GeneratedIds) -> np.ndarray:
            mask = np.ones(model.config.vocab_size, bool)
            mask[[first, *ends]] = False
            mask[second] = second not in ids
            if second in ids:
                mask[list(ends)] = True
            if ids and ids[-1] in ends:
                mask[:] = False
            mask[model.config.pad_token_id] = False
            return mask

        steps = beam_search(score_next, allow_next, width, length)
        ended = [one for step in steps for one in step if one.ids[-1] in ends]
        filled: dict[str, None] = {}
        for one in sorted(ended, key=lambda one: -one.total):
            split = one.ids.index(second)
            fills = one.ids[:split], one.ids[split + 1 : -1]
            literals = [_template_text(tokenizer.decode(part).strip(), False) for part in fills]
            texts = [" ".join(f"{{{names[index]}}}" for index in indices) for indices in (before, after)]
            parts = [texts[0], literals[0], f"{{{SLOT}}}", literals[1], texts[1]]
            filled[" ".join(part for part in parts if part)] = None
        templates += list(filled)[: -(-width // len(placements))]
    return templates


def _t5_scorer(
    model: Any,
    tokenizer: Any,
    task: TaskConfig,
    examples: Sequence[Example],
    before: Sequence[int],
    after: Sequence[int],
    device: str,
) -> ScoreNext:
    """A function that returns log p(token | example with label and masks, generated text), averaged over examples."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    sources = []
    for example in examples:
        assert example.label is not None
        label = class_index(task, example.label)
        word = example.choices[label] if task.choices else task.prompt.alternatives(task.answer_labels[label])[0]
        texts = [encode(text)[: MAX_SOURCE_TOKENS // max(1, len(example.texts))] for text in example.texts]
        middle = encode(f"{SENTINEL.format(0)} {word} {SENTINEL.format(1)}")
        parts = [*(texts[n] for n in before), middle, *(texts[n] for n in after), [tokenizer.eos_token_id]]
        sources.append(torch.tensor([[token for part in parts for token in part]], device=device))
    with torch.inference_mode():
        states = [model.get_encoder()(source).last_hidden_state for source in sources]  # [1,S,D] each
    start = [model.config.decoder_start_token_id, tokenizer.convert_tokens_to_ids(SENTINEL.format(0))]

    @torch.inference_mode()
    def log_probabilities(texts: Sequence[GeneratedIds]) -> np.ndarray:
        rows = torch.tensor([[*start, *ids] for ids in texts], device=device)  # [B,t+2]
        total = torch.zeros(len(rows), model.config.vocab_size)
        for state in states:
            encoder_outputs = (state.expand(len(rows), -1, -1),)
            logits = model(encoder_outputs=encoder_outputs, decoder_input_ids=rows, use_cache=False).logits[:, -1]
            total += logits.float().log_softmax(-1).cpu()
        return (total / len(states)).numpy()

    return log_probabilities


def _load_t5(t5: str, hub: str | None, device: str) -> tuple[Any, Any]:
    """Load a T5 and its tokenizer from a folder or from the hub."""
    import transformers

    source = str(Path(hub, t5)) if hub is not None and Path(hub, t5).is_dir() else t5
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"t5={t5} cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.convert_tokens_to_ids(SENTINEL.format(2)) == tokenizer.unk_token_id:
        raise UserError(f"t5={t5} is no T5: its vocabulary has no sentinel token {SENTINEL.format(2)}")
    return model.eval().to(device), tokenizer
