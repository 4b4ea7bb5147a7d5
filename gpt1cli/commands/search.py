"""gpt1 search: find a prompt's verbalizer or template on a few examples (Gao et al. 2021, section 5)."""

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
from gpt1cli.data.hub import Requirement, task_requirements
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_requirements
from gpt1cli.prompts import search, template_search
from gpt1cli.prompts.search import PromptCandidate
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import read_json, write_json, write_text
from gpt1cli.runs.folder import finish_run, is_finished
from gpt1cli.runs.record import record_checksums, update_environment
from gpt1cli.studies.cells import (
    Cell,
    command_module,
    compose_cell,
    log_message,
    prune_checkpoints,
    prune_other_runs,
    run_cells,
    validation_score,
)
from gpt1cli.tasks import few_shot, splits
from gpt1cli.tasks.splits import Split, load_examples
from gpt1cli.training import device


def needs(config: SearchConfig) -> list[Requirement]:
    """Return what the search and the fine-tuning of its candidates require."""
    if config.resume and is_finished(Path(config.resume), None):
        return []
    trackers.check_tracker(config.logger)
    splits.check_task(config.task)
    if config.t5 is not None:
        template_search.check_t5(config.t5, config.hub)
    cell = tuning_cell(config, None)
    requirements = [
        *task_requirements(config.task),
        *init_requirements(config.init or "openai"),
        *command_module(cell).needs(cell.config),
    ]
    return list(dict.fromkeys(requirements))


def run(config: SearchConfig, folder: Path) -> None:
    """Candidates -> the best without training -> one fine-tuning each -> yamls and a table, ranked by validation."""
    if config.resume and is_finished(folder, None):
        print(f"{folder} is finished: {folder / 'best.yaml'}")
        return
    try:
        run_search(config, folder)
    except (KeyboardInterrupt, SystemExit):
        execute.print_error(f"gpt1: to continue: gpt1 search resume={folder}")
        raise


def run_search(config: SearchConfig, folder: Path) -> None:
    """Search, fine-tune, rank, combine the best if ensemble= is set, and write the results."""
    start_time, failed = time.perf_counter(), dict[str, str]()
    candidates = load_or_search_candidates(config, folder)
    cells = [candidate_cell(config, folder, number, candidate) for number, candidate in enumerate(candidates, start=1)]
    tuned_folder, metric = folder / "tuned", config.task.metrics[0]

    def prune(cell: Cell) -> None:
        """Remove checkpoints of finished runs that keep=best does not keep."""
        if config.keep == "best":
            prune_checkpoints(tuned_folder / cell.name)
            prune_other_runs((tuned_folder / other.name for other in cells), metric, config.ensemble or 1)

    total = len(cells) + (config.ensemble is not None)
    run_cells(cells, tuned_folder, config, failed, 0, total, prune)
    stop_if_failed(failed, folder)
    scores = [validation_score(tuned_folder / cell.name, metric) for cell in cells]
    order = sorted(range(len(cells)), key=scores.__getitem__, reverse=True)
    (folder / "prompts").mkdir(exist_ok=True)
    for rank, i in enumerate(order, start=1):
        write_prompt(folder / "prompts" / f"{rank:03}.yaml", candidates[i].prompt)
    write_prompt(folder / "best.yaml", candidates[order[0]].prompt)
    tables = [ranking_table(config, candidates, order, [tuned_folder / cell.name for cell in cells])]
    ensemble: dict[str, Any] = {}
    if config.ensemble is not None:
        members = [tuned_folder / cells[i].name for i in order[: config.ensemble]]
        run_cells([ensemble_cell(config, members)], folder, config, failed, len(cells), total, lambda _: None)
        stop_if_failed(failed, folder)
        ensemble = ensemble_result(config, folder, members)
        tables.append(ensemble_table(config, ensemble))
    for table in tables:
        table.show()
    best = read_json(tuned_folder / cells[order[0]].name / "result.json")
    result = {
        "status": "finished",
        "command": "search",
        "name": config.name,
        "seed": config.seed,
        "what": config.what,
        "seconds": round(time.perf_counter() - start_time, 3),
        "tuned": len(cells),
        "best": cells[order[0]].name,
        "best_step": best["best_step"],
        "valid": best["valid"],
        **({"ensemble": ensemble} if ensemble else {}),
    }
    write_run_report(folder, result, tables)
    finish_run(folder, result)
    log_message(
        folder,
        f"gpt1: best of {len(cells)} prompts: prompt={folder / 'best.yaml'}; all prompts: {folder / 'prompts'}",
    )


def stop_if_failed(failed: Mapping[str, str], folder: Path) -> None:
    """Raise RunFailed if a run of the search failed."""
    if failed:
        raise execute.RunFailed(1, f"gpt1: {'; '.join(failed.values())}; to continue: gpt1 search resume={folder}")


def load_or_search_candidates(config: SearchConfig, folder: Path) -> list[PromptCandidate]:
    """Return the best candidates without training: those of an earlier start of this search, or new ones with yamls."""
    path = folder / "candidates.json"
    if not path.exists():
        candidates = search_candidates(config, folder)
        (folder / "candidates").mkdir(exist_ok=True)
        for number, candidate in enumerate(candidates, start=1):
            write_prompt(folder / "candidates" / f"{number:03}.yaml", candidate.prompt)
        write_json(path, {"candidates": [candidate.as_dict() for candidate in candidates]})
    stored = read_json(path)["candidates"]
    return [
        PromptCandidate(build(PromptConfig, candidate["prompt"]), candidate["score"], candidate["likelihood"])
        for candidate in stored
    ]


def search_candidates(config: SearchConfig, folder: Path) -> list[PromptCandidate]:
    """Return the best candidates on the training examples, without training. Raises UserError if there is none."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    task, limits = config.task, (machine.micro_batch, machine.token_budget)
    with Progress(folder, 1, config.runtime.progress, description="candidate") as progress:
        model, tokenizer = load.load_language_model(config.init or "openai", config.hub, config.cache)
        model.to(machine.device, machine.precision)
        loaded = load_examples(config, "train")
        assert loaded is not None  # train is never absent
        examples = loaded[0]
        split = Split(examples, (), 0, loaded[1])
        record_checksums(folder, tokenizer=tokenizer.identity, train=split.digest)
        progress.say(f"train: {split}; as many validation examples rank the prompts after training")
        task_prompt = search.evaluate_prompt(model, task, tokenizer, examples, *limits)
        progress.say(f"prompt of the task: {describe_candidate(config, task_prompt)}")
        if config.what == "words":
            sizes = config.pieces, config.combinations, config.tune
            candidates = search.search_verbalizers(model, task, tokenizer, examples, *sizes, *limits)
        else:
            if config.t5 is not None:
                texts = template_search.generate_templates_with_t5(
                    config.t5, config.hub, task, examples, config.beam, config.length, str(machine.device)
                )
            else:
                texts = template_search.generate_templates(
                    model, task, tokenizer, examples, config.beam, config.length, machine.token_budget
                )
            progress.total = len(texts)
            progress.say(f"{len(texts)} templates generated by {config.t5 or 'the model itself'}")
            candidates = []
            for number, text in enumerate(texts, start=1):
                task_with_template = search.with_template(task, text)
                candidates.append(search.evaluate_prompt(model, task_with_template, tokenizer, examples, *limits))
                progress.update(number)
            candidates = search.rank_candidates(candidates)[: config.tune]
        if not candidates:
            key = "pieces=" if config.what == "words" else "beam="
            raise UserError(f"what={config.what}: no usable candidate found; try a larger {key}")
        progress.say(f"best without training: {describe_candidate(config, candidates[0])}")
    return candidates


def tuning_cell(config: SearchConfig, prompt: Path | None) -> Cell:
    """Compose the fine-tuning with a prompt; without one, with the prompt of the task."""
    settings = [f"task={config.task.name}", f"init={config.init or 'openai'}", f"shots={config.shots}"]
    overrides = [*config.cells, *settings, f"seed={config.seed}", "method=prompt"]
    if prompt_file := prompt or (config.prompt and Path(config.prompt)):
        overrides.append(f"prompt={prompt_file}")
    return compose_cell("tuned", "finetune", overrides, config)


def candidate_cell(config: SearchConfig, folder: Path, number: int, candidate: PromptCandidate) -> Cell:
    """Compose the fine-tuning of a candidate."""
    path = folder / "candidates" / f"{number:03}.yaml"
    return dataclasses.replace(tuning_cell(config, path), name=f"{number:03}")


def ensemble_cell(config: SearchConfig, members: Sequence[Path]) -> Cell:
    """Compose the evaluation of the best runs as an ensemble, on the test rows of the single runs."""
    split, tuned = few_shot.tested_split(config.task), tuning_cell(config, None).config
    assert isinstance(tuned, FinetuneConfig)
    overrides = [
        f"runs=[{','.join(quote(str(member)) for member in members)}]",
        f"split={split}",
        f"seed={config.seed}",
    ]
    if tuned.limit.test is not None:
        overrides.append(f"limit.{split}={tuned.limit.test}")
    return compose_cell("ensemble", "evaluate", overrides, config)


def ensemble_result(config: SearchConfig, folder: Path, members: Sequence[Path]) -> dict[str, Any]:
    """Return the test scores of the ensemble and of its best member."""
    test = read_json(folder / "ensemble" / "result.json")[few_shot.tested_split(config.task)]
    best_alone = read_json(members[0] / "result.json")["test"]
    return {"runs": [member.name for member in members], "test": test, "best_alone": best_alone}


def ensemble_table(config: SearchConfig, result: Mapping[str, Any]) -> ReportTable:
    """Compare the ensemble with its best member."""
    split = few_shot.tested_split(config.task)
    metrics = [name for name in config.task.metrics if name in result["test"]]
    header = ["", *(f"{metric} ({split})" for metric in metrics)]
    rows = [
        [name, *(f"{result[key][metric]:.3f}" for metric in metrics)]
        for name, key in (("best prompt", "best_alone"), (f"ensemble of the {len(result['runs'])} best", "test"))
    ]
    return ReportTable(
        "An ensemble of prompts", header, rows, ["ensemble: the mean of their scores predicts (ensemble/)"]
    )


def write_prompt(path: Path, prompt: PromptConfig) -> None:
    """Write the yaml that prompt= takes, without default values."""
    defaults = dataclasses.asdict(PromptConfig())
    changed = {key: value for key, value in dataclasses.asdict(prompt).items() if value != defaults[key]}
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, text)


def ranking_table(
    config: SearchConfig, candidates: Sequence[PromptCandidate], order: Sequence[int], folders: Sequence[Path]
) -> ReportTable:
    """Return the prompts ranked by validation, with their scores before training."""
    metric = config.task.metrics[0]
    rows = []
    for rank, i in enumerate(order, start=1):
        candidate, valid = candidates[i], validation_score(folders[i], metric)[0]
        rows.append(
            [
                f"{rank}",
                format_candidate(config, candidate),
                f"{i + 1}",
                f"{candidate.score:.3f}",
                f"{candidate.likelihood:.3f}",
                f"{valid:.3f}",
            ]
        )
    measure = "accuracy" if config.task.is_classification else "pearson"
    header = ["rank", config.what, "rank before training", f"train {measure}", "log-likelihood", f"valid {metric}"]
    examples_note = f"{config.shots} examples per class to search and as many to validate, seed {config.seed}"
    training_note = (
        "the rank before training is the name of the run in tuned/; train and log-likelihood are before training"
    )
    return ReportTable(f"Prompts for {config.task.name}", header, rows, [examples_note, training_note])


def format_candidate(config: SearchConfig, candidate: PromptCandidate) -> str:
    """Format the searched part of a prompt: its template or its verbalizer."""
    if config.what == "templates":
        return str(candidate.prompt.template)
    return ", ".join(f"{label}: {' / '.join(candidate.prompt.alternatives(label))}" for label in candidate.prompt.words)


def describe_candidate(config: SearchConfig, candidate: PromptCandidate) -> str:
    """Describe a candidate in a line."""
    measure = "accuracy" if config.task.is_classification else "pearson"
    numbers = f"{measure} {candidate.score:.3f}, log-likelihood {candidate.likelihood:.3f} on its training examples"
    return f"{format_candidate(config, candidate)} ({numbers})"
