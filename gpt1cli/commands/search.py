"""gpt1 search: words for a prompt's labels, or its template, found on a few examples (Gao et al. 2021, section 5)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpt1cli.cli import execute
from gpt1cli.cli.overrides import quote
from gpt1cli.config.commands import FinetuneConfig, SearchConfig
from gpt1cli.config.prompt import PromptConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.data.hub import Need, task_needs
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_needs
from gpt1cli.prompts import search, template_search
from gpt1cli.prompts.search import Candidate
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import read_json, write_json, write_text
from gpt1cli.runs.folder import finish, is_finished
from gpt1cli.runs.record import note, note_checksums
from gpt1cli.studies.cells import Cell, composed, keep_best, keep_chosen, module_of, on_dev, run_all, say
from gpt1cli.tasks import few_shot, splits
from gpt1cli.tasks.splits import Split, load_examples
from gpt1cli.training import device


def needs(config: SearchConfig) -> list[Need]:
    """What must be at hand before the search starts, and before its best are fine-tuned."""
    if config.resume and is_finished(Path(config.resume), None):
        return []
    trackers.check(config.logger)
    splits.check(config.task)
    if config.t5 is not None:
        template_search.check(config.t5, config.hub)
    tuned = tuning(config, None)
    found = [*task_needs(config.task), *init_needs(config.init or "openai"), *module_of(tuned).needs(tuned.config)]
    return list(dict.fromkeys(found))


def run(config: SearchConfig, folder: Path) -> None:
    """Candidates -> the best without training -> a fine-tuning of each -> yamls and a table, as validation has it."""
    if config.resume and is_finished(folder, None):
        print(f"{folder} is finished: {folder / 'best.yaml'}")
        return
    try:
        _search(config, folder)
    except (KeyboardInterrupt, SystemExit):
        execute.say(f"gpt1: the search goes on with gpt1 search resume={folder}")
        raise


def _search(config: SearchConfig, folder: Path) -> None:
    began, failed = time.perf_counter(), dict[str, str]()
    candidates = candidates_of(config, folder)
    cells = [cell_of(config, folder, number, one) for number, one in enumerate(candidates, start=1)]
    home, headline = folder / "tuned", config.task.metrics[0]

    def tidy(cell: Cell) -> None:
        """Weights of finished runs: the best of each, or of the best alone."""
        if config.keep == "best":
            keep_best(home / cell.name)
            keep_chosen((home / one.name for one in cells), headline, config.ensemble or 1)

    total = len(cells) + (config.ensemble is not None)
    run_all(cells, home, config, failed, 0, total, tidy)
    _stop_for(failed, folder)
    order = sorted(range(len(cells)), key=lambda i: on_dev(home / cells[i].name, headline), reverse=True)
    (folder / "prompts").mkdir(exist_ok=True)
    for rank, i in enumerate(order, start=1):
        write_prompt(folder / "prompts" / f"{rank:03}.yaml", candidates[i].prompt)
    write_prompt(folder / "best.yaml", candidates[order[0]].prompt)
    tables = [overview(config, candidates, order, [home / cell.name for cell in cells])]
    together: dict[str, Any] = {}
    if config.ensemble is not None:
        members = [home / cells[i].name for i in order[: config.ensemble]]
        run_all([ensemble_of(config, members)], folder, config, failed, len(cells), total, lambda _: None)
        _stop_for(failed, folder)
        together = ensembled(config, folder, members)
        tables.append(beside(config, together))
    for table in tables:
        table.show()
    best = read_json(home / cells[order[0]].name / "result.json")
    result = {
        "status": "finished",
        "command": "search",
        "name": config.name,
        "seed": config.seed,
        "what": config.what,
        "seconds": round(time.perf_counter() - began, 3),
        "tuned": len(cells),
        "best": cells[order[0]].name,
        "best_step": best["best_step"],
        "valid": best["valid"],
        **({"ensemble": together} if together else {}),
    }
    write_run_report(folder, result, tables)
    finish(folder, result)
    say(
        folder,
        f"gpt1: the best of {len(cells)}, for prompt=: {folder / 'best.yaml'}; all of them: {folder / 'prompts'}",
    )


def _stop_for(failed: Mapping[str, str], folder: Path) -> None:
    """End the search where a run of it has failed."""
    if failed:
        raise execute.Failed(1, f"gpt1: {'; '.join(failed.values())}; resume={folder} goes on")


def candidates_of(config: SearchConfig, folder: Path) -> list[Candidate]:
    """The best without training, as they were found before, or found now; their yamls are there."""
    path = folder / "candidates.json"
    if not path.exists():
        found = searched(config, folder)
        (folder / "candidates").mkdir(exist_ok=True)
        for number, one in enumerate(found, start=1):
            write_prompt(folder / "candidates" / f"{number:03}.yaml", one.prompt)
        write_json(path, {"candidates": [one.plain() for one in found]})
    known = read_json(path)["candidates"]
    return [Candidate(build(PromptConfig, one["prompt"]), one["score"], one["likelihood"]) for one in known]


def searched(config: SearchConfig, folder: Path) -> list[Candidate]:
    """The best candidates on the training examples, without training. UserError where there is none."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    task, limits = config.task, (machine.micro_batch, machine.token_budget)
    with Progress(folder, 1, config.runtime.progress, description="candidate") as progress:
        model, vocabulary = load.load(config.init or "openai", config.hub, config.cache)
        model.to(machine.device, machine.precision)
        loaded = load_examples(config, "train")
        assert loaded is not None  # train is never absent
        examples = loaded[0]
        split = Split(examples, (), 0, loaded[1])
        note_checksums(folder, tokenizer=vocabulary.identity, train=split.digest)
        progress.say(f"train: {split}; on validation as many are kept for the ranking after training")
        own = search.worth(model, task, vocabulary, examples, *limits)
        progress.say(f"the task's own prompt: {told(config, own)}")
        if config.what == "words":
            sizes = config.pieces, config.combinations, config.tune
            found = search.words(model, task, vocabulary, examples, *sizes, *limits)
        else:
            if config.t5 is not None:
                texts = template_search.by_t5(
                    config.t5, config.hub, task, examples, config.beam, config.length, str(machine.device)
                )
            else:
                texts = template_search.by_model(
                    model, task, vocabulary, examples, config.beam, config.length, machine.token_budget
                )
            progress.total = len(texts)
            progress.say(f"{len(texts)} templates written by {config.t5 or 'the model itself'}")
            found = []
            for number, text in enumerate(texts, start=1):
                told_apart = search.with_template(task, text)
                found.append(search.worth(model, told_apart, vocabulary, examples, *limits))
                progress.update(number)
            found = search.ranked(found)[: config.tune]
        if not found:
            larger = "pieces=" if config.what == "words" else "beam="
            raise UserError(
                f"what={config.what}: nothing was found that a prompt could take; larger {larger} keeps more"
            )
        progress.say(f"the best without training: {told(config, found[0])}")
    return found


def tuning(config: SearchConfig, prompt: Path | None) -> Cell:
    """A fine-tuning through a prompt, composed; without one through the task's own."""
    own = [f"task={config.task.name}", f"init={config.init or 'openai'}", f"shots={config.shots}"]
    words = [*config.cells, *own, f"seed={config.seed}", "method=prompt"]
    if chosen := prompt or (config.prompt and Path(config.prompt)):
        words.append(f"prompt={chosen}")
    return composed("tuned", "finetune", words, config)


def cell_of(config: SearchConfig, folder: Path, number: int, candidate: Candidate) -> Cell:
    """The fine-tuning of a candidate."""
    path = folder / "candidates" / f"{number:03}.yaml"
    return dataclasses.replace(tuning(config, path), name=f"{number:03}")


def ensemble_of(config: SearchConfig, members: Sequence[Path]) -> Cell:
    """The best runs asked together on the split that tests, of which the tuned runs were tested on the same rows."""
    split, tuned = few_shot.tested(config.task), tuning(config, None).config
    assert isinstance(tuned, FinetuneConfig)
    words = [f"runs=[{','.join(quote(str(member)) for member in members)}]", f"split={split}", f"seed={config.seed}"]
    if tuned.limit.test is not None:
        words.append(f"limit.{split}={tuned.limit.test}")
    return composed("ensemble", "evaluate", words, config)


def ensembled(config: SearchConfig, folder: Path, members: Sequence[Path]) -> dict[str, Any]:
    """What the ensemble and the best of its members alone score on the split that tests."""
    found = read_json(folder / "ensemble" / "result.json")[few_shot.tested(config.task)]
    alone = read_json(members[0] / "result.json")["test"]
    return {"runs": [member.name for member in members], "test": found, "best_alone": alone}


def beside(config: SearchConfig, together: Mapping[str, Any]) -> Table:
    """The ensemble beside the best of its members."""
    split = few_shot.tested(config.task)
    metrics = [name for name in config.task.metrics if name in together["test"]]
    header = ["", *(f"{metric} ({split})" for metric in metrics)]
    rows = [
        [who, *(f"{together[key][metric]:.3f}" for metric in metrics)]
        for who, key in (("the best alone", "best_alone"), (f"the {len(together['runs'])} best together", "test"))
    ]
    return Table("An ensemble of prompts", header, rows, ["together: the mean of their scores answers (ensemble/)"])


def write_prompt(path: Path, prompt: PromptConfig) -> None:
    """The yaml that prompt= takes; what it leaves out has its default."""
    usual = dataclasses.asdict(PromptConfig())
    said = {key: value for key, value in dataclasses.asdict(prompt).items() if value != usual[key]}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, text)


def overview(
    config: SearchConfig, candidates: Sequence[Candidate], order: Sequence[int], places: Sequence[Path]
) -> Table:
    """The prompts as validation ranks them, with what they were worth before training."""
    headline = config.task.metrics[0]
    rows = []
    for rank, i in enumerate(order, start=1):
        one, valid = candidates[i], on_dev(places[i], headline)[0]
        rows.append(
            [f"{rank}", said(config, one), f"{i + 1}", f"{one.score:.3f}", f"{one.likelihood:.3f}", f"{valid:.3f}"]
        )
    measure = "accuracy" if config.task.classes else "pearson"
    header = ["rank", config.what, "rank before training", f"train {measure}", "log-likelihood", f"valid {headline}"]
    drawn = f"{config.shots} examples of each class to search on, and as many others to validate on, seed {config.seed}"
    before = "the rank before training names the run in tuned/; train and log-likelihood are of then"
    return Table(f"What {config.task.name} may be asked with", header, rows, [drawn, before])


def said(config: SearchConfig, candidate: Candidate) -> str:
    """What of a prompt was looked for."""
    if config.what == "templates":
        return str(candidate.prompt.template)
    return ", ".join(f"{label}: {' / '.join(candidate.prompt.alternatives(label))}" for label in candidate.prompt.words)


def told(config: SearchConfig, candidate: Candidate) -> str:
    """A candidate in a line."""
    measure = "accuracy" if config.task.classes else "pearson"
    numbers = f"{measure} {candidate.score:.3f}, log-likelihood {candidate.likelihood:.3f} on its training examples"
    return f"{said(config, candidate)} ({numbers})"
