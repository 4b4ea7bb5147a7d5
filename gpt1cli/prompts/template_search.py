"""Templates that nobody had to think of: texts around the slot of a label, written from a few examples.

LM-BFF (Gao et al. 2021, section 5.2) has a T5 fill the gaps around the label, by one beam search for all training
examples together: at every step a text is worth its log-probability, summed over the examples. Here the model itself
writes so, as it reads from left to right: a cue, which goes on from the examples' texts and after which the label's
words come. A T5 can be asked instead, through transformers.

N examples, B texts that are being written, V vocabulary rows, t pieces written.
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
from gpt1cli.config.template import SLOT, parse
from gpt1cli.models.inference import device_of, read
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts.prompt import Prompt, lay
from gpt1cli.prompts.search import with_template
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_of
from gpt1cli.text.bpe import UNKNOWN, Tokenizer

if TYPE_CHECKING:
    from gpt1cli.models.transformer import Past

Written = tuple[int, ...]
Next = Callable[[Sequence[Written]], np.ndarray]  # texts of equal length -> log p of every next piece, [B,V]
Allowed = Callable[[Written], np.ndarray]  # a text -> which pieces may come next, bool [V]; none: it has ended


class Beam(NamedTuple):
    """A text, and its log-probability: the mean over the examples of the sum over its pieces."""

    ids: Written
    total: float


def beam_search(following: Next, allowed: Allowed, width: int, length: int) -> Iterator[list[Beam]]:
    """The `width` likeliest texts of 1, 2, ... pieces, the likeliest first, each an extension of one before it."""
    beam = [Beam((), 0.0)]
    for _ in range(length):
        masks = [allowed(one.ids) for one in beam]
        open_ones = [(one, mask) for one, mask in zip(beam, masks, strict=True) if mask.any()]
        if not open_ones:
            return
        log_p = following([one.ids for one, _ in open_ones])  # [B,V]
        before, may = np.array([[one.total] for one, _ in open_ones]), np.stack([mask for _, mask in open_ones])
        totals = np.where(may, before + log_p, -np.inf)  # [B,V]
        best = np.argsort(-totals, axis=None, kind="stable")[: min(width, int(may.sum()))]
        rows, pieces = np.unravel_index(best, totals.shape)
        beam = [Beam((*open_ones[b][0].ids, int(v)), float(totals[b, v])) for b, v in zip(rows, pieces, strict=True)]
        yield beam


# --- written by the model itself --------------------------------------------------------------------------------------


def openings(task: TaskConfig) -> list[str]:
    """What a cue goes on from: all texts of an example, and the task's own prompt to its last text, if it differs."""
    names = {number: name for name, number in task.fields.items()}  # of several names for a text the task's own
    found = [" ".join(f"{{{names[number]}}}" for number in sorted(names))]
    parts = parse(task.prompt.template or "")
    last = max((i for i, part in enumerate(parts) if part.named and part.text != SLOT), default=-1)
    if all(part.text != SLOT or not part.named for part in parts[: last + 1]):
        found.append("".join(_spelled(*part) for part in parts[: last + 1]))
    return [opening for opening in dict.fromkeys(found) if opening]


def _spelled(text: str, named: bool) -> str:
    """A part of a template as one writes it."""
    return f"{{{text}}}" if named else text.replace("{", "{{").replace("}", "}}")


def by_model(
    model: LanguageModel,
    task: TaskConfig,
    vocabulary: Tokenizer,
    examples: Sequence[Example],
    width: int,
    length: int,
    token_budget: int,
) -> list[str]:
    """Templates that end in a cue and the slot: for each opening all cues of up to `length` pieces that a beam held.

    A cue counts where its text is read as the same pieces again, so where it ends with a word.
    """
    texts = [vocabulary.decode([i]) for i in range(len(vocabulary))]
    visible = np.array([bool(text.strip()) and text.strip() != UNKNOWN for text in texts])  # [V]
    found: dict[str, None] = {}
    for opening in openings(task):
        prompt = Prompt.of(with_template(task, f"{opening} {{{SLOT}}}"), vocabulary)
        room = model.config.n_positions - length
        if room < 2:
            raise UserError(f"length={length}: n_positions={model.config.n_positions} leave no room for it")
        laid = [lay(prompt, [], query, room) for query in prompt.queries(examples)]
        contexts = [one.rows[0][: one.shared] for one in laid]
        following = _following(model, contexts, len(vocabulary), token_budget)
        steps = beam_search(following, lambda _: visible, width, length)
        for one in itertools.chain.from_iterable(steps):
            template = f"{opening} {_spelled(vocabulary.decode(one.ids).strip(), False)} {{{SLOT}}}"
            if template not in found and _same(task, template, vocabulary, one.ids):
                found[template] = None
    return list(found)


def _same(task: TaskConfig, template: str, vocabulary: Tokenizer, ids: Written) -> bool:
    """Whether the text before a template's slot is read as these pieces."""
    before = Prompt.of(with_template(task, template), vocabulary).before
    return bool(before) and before[-1] == list(ids)


def _following(model: LanguageModel, contexts: Sequence[Sequence[int]], vocabulary: int, token_budget: int) -> Next:
    """log p(piece | context, what has been written), the mean over the contexts, each of which is read once."""
    kept: list[Past | None] = [read(model, context[:-1]) if len(context) > 1 else None for context in contexts]
    device, table = device_of(model), model.tokens.weight[:vocabulary].float()

    @torch.inference_mode()
    def log_probabilities(texts: Sequence[Written]) -> np.ndarray:
        totals = torch.zeros(len(texts), vocabulary)
        for context, past in zip(contexts, kept, strict=True):
            rows = torch.tensor([[context[-1], *ids] for ids in texts], device=device)  # [B,t+1]
            width = rows.shape[1] + (0 if past is None else past.length)
            parts = rows.split(max(1, token_budget // width))
            states = torch.cat([model(part, past=past)[:, -1] for part in parts])  # [B,D]
            totals += (states.float() @ table.T).log_softmax(-1).cpu()
        return (totals / len(contexts)).numpy()

    return log_probabilities


# --- written by a T5 --------------------------------------------------------------------------------------------------

SENTINEL = "<extra_id_{}>"  # T5's names for gaps
LONGEST = 384  # pieces of an example that a T5 reads, which was trained on 512


def check(t5: str, hub: str | None) -> None:
    """UserError where a T5 is asked for and cannot be had."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        way = "pip install 'gpt1[t5]', or generator=model"
        raise UserError(f"generator=t5 needs transformers: {way}") from None
    if hub is not None and not Path(hub, t5).is_dir() and not Path(t5).is_dir():
        raise UserError(f"t5={t5}: no such folder, and none of that name below hub={hub}")


def gaps(task: TaskConfig) -> list[tuple[list[int], list[int]]]:
    """Which texts stand before the two gaps with the label between them, and which behind, as LM-BFF has them.

    Of one text: it stands before, or behind; of two: one before and one behind, or, as suits a model that reads from
    left to right, both before.
    """
    numbers = sorted(set(task.fields.values()))
    return [(numbers, []), ([], numbers)] if len(numbers) < 2 else [(numbers[:1], numbers[1:]), (numbers, [])]


def by_t5(
    t5: str, hub: str | None, task: TaskConfig, examples: Sequence[Example], width: int, length: int, device: str
) -> list[str]:
    """Templates whose gaps around the slot a T5 has filled, the likeliest first, as many for each place of texts."""
    peer, tokenizer = _loaded(t5, hub, device)
    first, second, third = (tokenizer.convert_tokens_to_ids(SENTINEL.format(n)) for n in range(3))
    ends = {third, tokenizer.eos_token_id}
    names = {number: name for name, number in task.fields.items()}
    found: list[str] = []
    several = gaps(task)
    for before, behind in several:
        following = _t5_following(peer, tokenizer, task, examples, before, behind, device)

        def allowed(ids: Written) -> np.ndarray:
            mask = np.ones(peer.config.vocab_size, bool)
            mask[[first, *ends]] = False
            mask[second] = second not in ids
            if second in ids:
                mask[list(ends)] = True
            if ids and ids[-1] in ends:
                mask[:] = False
            mask[peer.config.pad_token_id] = False
            return mask

        ended = [one for step in beam_search(following, allowed, width, length) for one in step if one.ids[-1] in ends]
        filled_in: dict[str, None] = {}
        for one in sorted(ended, key=lambda one: -one.total):
            cut = one.ids.index(second)
            around = one.ids[:cut], one.ids[cut + 1 : -1]
            filled = [_spelled(tokenizer.decode(part).strip(), False) for part in around]
            texts = [" ".join(f"{{{names[number]}}}" for number in numbers) for numbers in (before, behind)]
            parts = [texts[0], filled[0], f"{{{SLOT}}}", filled[1], texts[1]]
            filled_in[" ".join(part for part in parts if part)] = None
        found += list(filled_in)[: -(-width // len(several))]
    return found


def _t5_following(
    peer: Any,
    tokenizer: Any,
    task: TaskConfig,
    examples: Sequence[Example],
    before: Sequence[int],
    behind: Sequence[int],
    device: str,
) -> Next:
    """log p(piece | example with its label between two gaps, what has been written), the mean over the examples."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    sources = []
    for example in examples:
        assert example.label is not None
        label = class_of(task, example.label)
        word = example.choices[label] if task.choices else task.prompt.alternatives(task.answers[label])[0]
        texts = [ids_of(text)[: LONGEST // max(1, len(example.texts))] for text in example.texts]
        middle = ids_of(f"{SENTINEL.format(0)} {word} {SENTINEL.format(1)}")
        parts = [*(texts[n] for n in before), middle, *(texts[n] for n in behind), [tokenizer.eos_token_id]]
        sources.append(torch.tensor([[token for part in parts for token in part]], device=device))
    with torch.inference_mode():
        states = [peer.get_encoder()(source).last_hidden_state for source in sources]  # [1,S,D] each
    start = [peer.config.decoder_start_token_id, tokenizer.convert_tokens_to_ids(SENTINEL.format(0))]

    @torch.inference_mode()
    def log_probabilities(texts: Sequence[Written]) -> np.ndarray:
        rows = torch.tensor([[*start, *ids] for ids in texts], device=device)  # [B,t+2]
        total = torch.zeros(len(rows), peer.config.vocab_size)
        for state in states:
            seen = (state.expand(len(rows), -1, -1),)
            logits = peer(encoder_outputs=seen, decoder_input_ids=rows, use_cache=False).logits[:, -1]
            total += logits.float().log_softmax(-1).cpu()
        return (total / len(states)).numpy()

    return log_probabilities


def _loaded(t5: str, hub: str | None, device: str) -> tuple[Any, Any]:
    """A T5 and its tokenizer, from a folder or from the hub."""
    import transformers

    where = str(Path(hub, t5)) if hub is not None and Path(hub, t5).is_dir() else t5
    try:
        peer = transformers.AutoModelForSeq2SeqLM.from_pretrained(where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"t5={t5}: it cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.convert_tokens_to_ids(SENTINEL.format(2)) == tokenizer.unk_token_id:
        raise UserError(f"t5={t5}: its vocabulary has no {SENTINEL.format(2)}, so it fills no gaps as a T5 does")
    return peer.eval().to(device), tokenizer
