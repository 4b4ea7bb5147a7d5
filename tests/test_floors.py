"""Who may import whom: the floors of the package, and the few files that may touch a heavy library.

A file imports its own wing and wings on lower floors, never a neighbour on its floor. Every import statement counts,
those inside functions too; a module that is imported by name (importlib) is not seen. The rules are one function of
source texts, `violations`, so that each rule is also seen to fail on a package made up here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path

import pytest

import gpt1cli

PACKAGE = "gpt1cli"
ROOT = Path(gpt1cli.__file__).parent

FLOORS = {
    8: "commands",
    7: "studies",
    6: "cli evaluation bench",
    5: "prompts training",
    4: "tasks pretrained",
    3: "text reporting",
    2: "models runs data",
    1: "config",
}
FLOOR = {wing: floor for floor, wings in FLOORS.items() for wing in wings.split()}
OUTSIDE = {"__init__", "__main__"}  # the door: they import what they open

ALLOWED = {  # wing or file -> the only wings of ours that it imports, itself excepted
    "models": {"config"},
    "runs": {"config"},
    "data": {"config"},
    "reporting": {"config", "runs"},
}
FORBIDDEN = {"training": {"tasks"}, "prompts": {"training"}}  # neighbours aside: lower wings that it must not know

ONLY_IN = {  # library -> the wings and files that may import it
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "datasets": {"data", "tasks.sources", "text.documents"},
    "ftfy": {"text.normalise"},
    "spacy": {"text.normalise"},
    "rich": {"cli.help", "runs.console", "reporting"},
    "sentence_transformers": {"prompts.demonstrations"},
    "transformers": {"prompts.template_search", "bench"},
    **{name: {"runs.trackers"} for name in ("tensorboard", "wandb", "mlflow", "trackio")},
}
NO_TORCH = {"config", "cli", "runs", "reporting", "pretrained.locate", "pretrained.hf_config", "__main__"}
EMPTY_INITS = set(FLOOR) - {"models", "tasks", "bench"} | {"tasks.sources"}


def within(module: str, rooms: set[str]) -> bool:
    """Whether a module is one of the named wings and files, or lies in one."""
    parts = module.split(".")
    return any(".".join(parts[:n]) in rooms for n in range(1, len(parts) + 1))


def imported(module: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Yield the absolute dotted names that a module imports; of ours always the module, never a name inside it."""
    is_package = module == "__init__" or any(other.startswith(f"{module}.") for other in modules)
    package = f"{PACKAGE}.{module}" if is_package else f"{PACKAGE}.{module}".rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.") in modules else base


def violations(modules: Mapping[str, str]) -> list[str]:
    """Return every broken rule of a package given as module -> source; a wing's __init__ has the wing's name."""
    broken, within_wing = [], {}
    for module, source in modules.items():
        wing = module.partition(".")[0]
        if wing not in FLOOR and module not in OUTSIDE:
            broken.append(f"{module} lies in no wing: give {wing} a floor in FLOORS")
            continue
        names = set(imported(module, source, modules))
        ours = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")} - {module}
        within_wing[module] = {target for target in ours if target.partition(".")[0] == wing}
        for target in sorted(ours - within_wing[module] if module not in OUTSIDE else ()):
            other = target.partition(".")[0]
            if other not in FLOOR:
                broken.append(f"{module} imports {target}: nothing imports the door")
            elif FLOOR[other] > FLOOR[wing]:
                broken.append(f"{module} (floor {FLOOR[wing]}) imports {target} (floor {FLOOR[other]})")
            elif FLOOR[other] == FLOOR[wing]:
                broken.append(f"{module} imports {target}: {wing} and {other} are neighbours on floor {FLOOR[wing]}")
            elif other == "bench" and module != "commands.bench":
                broken.append(f"{module} imports {target}: only commands.bench imports a benchmark")
            elif other not in ALLOWED.get(wing, FLOOR) or other in FORBIDDEN.get(wing, ()):
                broken.append(f"{module} imports {target}: {wing} must not know {other}")
        if wing == "commands" and within_wing[module]:
            broken.append(
                f"{module} imports {', '.join(sorted(within_wing[module]))}: commands do not import one another"
            )
        for library in sorted({name.partition(".")[0] for name in names}):
            if library in ONLY_IN and not within(module, ONLY_IN[library]):
                broken.append(f"{module} imports {library}: only {', '.join(sorted(ONLY_IN[library]))} may")
            if library == "torch" and within(module, NO_TORCH) and module != "runs.trackers":  # TensorBoard's writer
                broken.append(f"{module} imports torch: it must load without")
        if module in EMPTY_INITS and source.strip():
            broken.append(f"{module}/__init__.py is not empty")
    return broken + [f"circle: {' -> '.join(circle)}" for circle in circles(within_wing)]


def circles(edges: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the circles among the imports within a wing; the floors themselves forbid them across wings."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                yield from walk(target, [*path, module])
            done.add(module)

    for module in sorted(edges):
        yield from walk(module, [])


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sources[module.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def test_the_package_keeps_its_floors():
    modules = package_sources()
    assert {"config.schema", "runs.console"} <= modules.keys()
    assert violations(modules) == []


def test_every_wing_has_three_files_at_least():
    sizes = {wing: sum(module.startswith(f"{wing}.") for module in package_sources()) for wing in FLOOR}
    assert min(sizes.values()) >= 3, sizes


SOUND = {
    "__init__": "def load(init):\n    import torch\n    from gpt1cli.pretrained import load\n",
    "__main__": "from gpt1cli.cli.main import main\n",
    "bench": "BENCHMARKS = {}\n",
    "bench.training": "import transformers\nfrom gpt1cli.training.loop import fit\n",
    "cli": "",
    "cli.main": "import hydra\nfrom gpt1cli.config.commands import COMMANDS\nfrom gpt1cli.runs import folder\n",
    "cli.resolve": "from omegaconf import OmegaConf\nfrom gpt1cli.config.schema import build\n",
    "commands": "",
    "commands.ablation": "from gpt1cli.studies import cells\n",
    "commands.bench": "from gpt1cli.bench import BENCHMARKS\n",
    "commands.finetune": "from gpt1cli.tasks import SOURCES\nfrom gpt1cli.evaluation import predictor\n",
    "config": "",
    "config.commands": "from gpt1cli.config.schema import Key\n",
    "config.schema": "import dataclasses\n",
    "data": "",
    "data.hub": "import datasets\nfrom gpt1cli.config.schema import UserError\n",
    "evaluation.predictor": "from gpt1cli.prompts import prompt\nfrom gpt1cli.training import loop\n",
    "models": "ARCHITECTURES = {}\n",
    "models.kernels": "import torch.nn.functional as F\n",
    "models.transformer": "from .kernels import attention\n",
    "pretrained": "",
    "pretrained.locate": "from gpt1cli.config.schema import UserError\n",
    "prompts.prompt": "import torch\nfrom gpt1cli.tasks import layouts\n",
    "reporting": "",
    "reporting.page": "import rich\nfrom gpt1cli.runs import folder\n",
    "runs": "",
    "runs.folder": "import json\nfrom gpt1cli.config.version import __version__\n",
    "studies.cells": "from gpt1cli.cli import execute\nfrom gpt1cli.evaluation import predictor\n",
    "tasks": "SOURCES = {}\n",
    "tasks.glue": "from gpt1cli.tasks.layouts import Example\n",
    "tasks.layouts": "import torch\n",
    "tasks.sources": "",
    "tasks.sources.rows": "import datasets\nfrom .. import layouts\n",
    "text.normalise": "import ftfy, spacy\n",
    "training.checkpoint": "from gpt1cli.models.transformer import Transformer\nfrom gpt1cli.text import normalise\n",
    "training.loop": "from gpt1cli.runs import folder\nfrom gpt1cli.training import checkpoint\n",
}


def test_a_sound_package_breaks_no_rule():
    assert violations(SOUND) == []


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("newcomer.rooms", "", "newcomer.rooms lies in no wing"),
        ("runs.folder", "import gpt1cli.training.loop", "runs.folder (floor 2) imports training.loop (floor 5)"),
        (
            "studies.cells",
            "from gpt1cli.commands.finetune import run",
            "studies.cells (floor 7) imports commands.finetune",
        ),
        (
            "tasks.glue",
            "def late():\n    from gpt1cli.training import loop",
            "tasks.glue (floor 4) imports training.loop",
        ),
        ("models.transformer", "from ..text import normalise", "models.transformer (floor 2) imports text.normalise"),
        ("config.schema", "from gpt1cli.data import hub", "config.schema (floor 1) imports data.hub (floor 2)"),
        (
            "cli.main",
            "from gpt1cli.evaluation import predictor",
            "cli.main imports evaluation.predictor: cli and evaluation",
        ),
        (
            "training.loop",
            "from gpt1cli.prompts import prompt",
            "training.loop imports prompts.prompt: training and prompts",
        ),
        ("runs.folder", "from gpt1cli.data import hub", "runs.folder imports data.hub: runs and data are neighbours"),
        ("training.loop", "from gpt1cli.tasks import SOURCES", "training.loop imports tasks: training must not know"),
        (
            "reporting.page",
            "from gpt1cli.models import kernels",
            "reporting.page imports models.kernels: reporting must",
        ),
        ("cli.main", "from gpt1cli import __main__", "cli.main imports __main__: nothing imports the door"),
        (
            "studies.cells",
            "from gpt1cli.bench import training",
            "studies.cells imports bench.training: only commands.bench",
        ),
        (
            "commands.finetune",
            "from .ablation import run",
            "commands.finetune imports commands.ablation: commands do not",
        ),
        ("training.checkpoint", "from . import loop", "circle: training.checkpoint -> training.loop"),
        ("tasks.layouts", "from . import glue", "circle: tasks.glue -> tasks.layouts -> tasks.glue"),
        ("training.loop", "from omegaconf import DictConfig", "training.loop imports omegaconf: only cli may"),
        ("commands.finetune", "import hydra.utils", "commands.finetune imports hydra: only cli may"),
        ("training.loop", "from datasets import load_dataset", "training.loop imports datasets: only data"),
        ("data.hub", "import ftfy", "data.hub imports ftfy: only text.normalise may"),
        ("tasks.glue", "import spacy", "tasks.glue imports spacy: only text.normalise may"),
        ("training.loop", "from rich.live import Live", "training.loop imports rich: only"),
        ("training.loop", "import wandb", "training.loop imports wandb: only runs.trackers may"),
        ("runs.folder", "def environment():\n    import torch", "runs.folder imports torch: it must load without"),
        ("pretrained.locate", "from torch import nn", "pretrained.locate imports torch: it must load without"),
        ("cli", "VERSION = 1", "cli/__init__.py is not empty"),
    ],
)
def test_a_broken_rule_is_named(module: str, line: str, message: str):
    broken = violations({**SOUND, module: SOUND.get(module, "") + line + "\n"})
    assert len(broken) == 1 and broken[0].startswith(message)


def test_wings_that_answer_at_once_load_nothing_heavy():
    """Indirect imports too: `gpt1 --help` and `gpt1 report` must not wait for torch."""
    light = sorted(module for module in package_sources() if within(module, NO_TORCH) and module != "__main__")
    code = f"import sys, {', '.join(f'{PACKAGE}.{module}' for module in light)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert "gpt1cli.config.commands" in done.stdout.split()
    assert not {"torch", "datasets", "spacy", "ftfy", "transformers"} & set(done.stdout.split())
