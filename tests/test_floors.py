"""Who may import whom: the floors of the package and the few modules that may touch a heavy library.

Every import statement counts, those inside functions too; what is imported by name (importlib) is not seen. The rules
are held by `offences`, a function of source texts, so that each of them is also seen to fail on a package made up here.
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
SOURCES = Path(gpt1cli.__file__).parent

FLOORS = {  # a module imports from its own floor and from those below; a family (a folder) has the floor of its name
    4: "cli sweep argv help overview __main__ __init__",
    3: "commands",
    2: "running compose composer overrides restart fit scoring generation evaluation probing prompting objectives "
    "checkpoint convert report planning rehearsal benchmarks checkup studies pages plots curves runpage paper layers "
    "comparison asking demonstrations incontext cells searching cues fewstudy fewtable",
    1: "models tasks text lookup bytelevel tokenizer documents workers corpus batches optim metrics loggers rundir hub "
    "checksums demo_world tables runtime cautions options published origins distributed glue trackers config groups",
    0: "schema signals disk kernels templates",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
# answers before anything heavy is loaded ...
DOOR = set(FLOORS[4].split()) - {"__init__"} | {"running", "compose", "composer", "overrides", "restart"}
# ... and so sees these alone; a command's module comes by name
SEEN_BY_DOOR = DOOR | {"schema", "signals", "disk", "config", "groups", "options", "rundir", "origins", "commands"}

HYDRA = {"cli", "sweep", "compose", "composer", "overrides", "config", "commands.ablation"}
ONLY_IN = {  # library: the modules that may import it
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "datasets": {"hub", "tasks", "documents"},
    "ftfy": {"text"},
    "spacy": {"text"},
    "rich": {"cli", "help", "loggers", "pages"},
    "sentence_transformers": {"demonstrations"},
    "transformers": {"cues", "benchmarks"},
    **{name: {"trackers"} for name in ("tensorboard", "wandb", "mlflow", "trackio")},
}
QUICK = DOOR | {"schema", "signals", "disk", "config", "groups", "options", "rundir", "origins", "published"}
NOT_IN = {"torch": QUICK}


def family(module: str) -> str:
    """The name on the list that speaks for a module: tasks.glue -> tasks."""
    return module.partition(".")[0]


def imported(module: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Absolute dotted names that a module imports; of ours always the module, never a name inside it."""
    is_package = module == "__init__" or any(other.startswith(f"{module}.") for other in modules)
    package = f"{PACKAGE}.{module}" if is_package else f"{PACKAGE}.{module}".rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.") in modules else base


def offences(modules: Mapping[str, str]) -> list[str]:
    """Every broken rule in a package given as module -> source; a family's __init__ goes by the family's name."""
    found, level = [], {}
    for module, source in modules.items():
        me = family(module)
        if me not in FLOOR:
            found.append(f"{module} has no floor: give it one in FLOORS")
            continue
        names = set(imported(module, source, modules))
        targets = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")} - {module}
        level[module] = {target for target in targets if FLOOR.get(family(target)) == FLOOR[me]}
        for target in sorted(target for target in targets if family(target) in FLOOR):
            other = family(target)
            if FLOOR[other] > FLOOR[me]:
                found.append(f"{module} (floor {FLOOR[me]}) imports {target} (floor {FLOOR[other]})")
            elif FLOOR[me] == 0:
                found.append(f"{module} imports {target}: the lowest floor stands on nothing of ours")
            elif me in DOOR and (other not in SEEN_BY_DOOR or target.startswith("commands.")):
                found.append(f"{module} imports {target}: before a command is chosen nothing else is loaded")
            elif me == other == "commands" and module not in ("commands", "commands.ablation") and target != "commands":
                found.append(f"{module} imports {target}: commands do not import one another")
        for library in sorted({family(name) for name in names}):
            if library in ONLY_IN and not {module, me} & ONLY_IN[library]:
                found.append(f"{module} imports {library}: only {', '.join(sorted(ONLY_IN[library]))} may")
            if me in NOT_IN.get(library, ()):
                found.append(f"{module} imports {library}: it must not")
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(level)]


def circles(edges: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Circles among the imports of one floor; across floors the floors themselves forbid them."""
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
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
        found[module.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def test_the_package_keeps_its_floors():
    modules = package_sources()
    assert {"config", "loggers"} <= modules.keys()
    assert offences(modules) == []


SOUND = {
    "__init__": "def load(init):\n    import torch\n    from gpt1cli import checkpoint\n",
    "cli": "import hydra, rich\nfrom gpt1cli import config, rundir, compose, commands, __version__\n",
    "compose": "from omegaconf import OmegaConf\nfrom gpt1cli.config.schema import build\n",
    "schema": "import dataclasses\n",
    "config": "from gpt1cli.config.schema import Key\n",
    "kernels": "import torch.nn.functional as F\n",
    "rundir": "import json\nfrom gpt1cli import __version__\n",
    "hub": "import datasets\nfrom gpt1cli.config.schema import InputError\n",
    "tasks": "SOURCES = {}\n",
    "tasks.layouts": "import torch\n",
    "tasks.glue": "import datasets\nfrom gpt1cli import hub\nfrom gpt1cli.tasks.layouts import Example\n",
    "tasks.race": "from . import layouts\nfrom .. import hub\n",
    "models": "from gpt1cli.models.transformer import Transformer\n",
    "models.transformer": "from ..kernels import attention\n",
    "fit": "from gpt1cli import rundir, checkpoint\n",
    "checkpoint": "from gpt1cli.models import Transformer\n",
    "commands": "COMMANDS = {}\n",
    "commands.pretrain": "from gpt1cli.training.loop import fit\nfrom gpt1cli.config.commands import PretrainConfig\n",
    "commands.finetune": "from gpt1cli.tasks import SOURCES\n",
    "commands.ablation": "import omegaconf\nfrom gpt1cli.commands import finetune\n",
}


def test_a_sound_package_has_no_offences():
    assert offences(SOUND) == []


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("newcomer", "", "newcomer has no floor"),
        ("rundir", "import gpt1cli.training.loop", "rundir (floor 1) imports fit (floor 2)"),
        ("checkpoint", "from gpt1cli.commands.pretrain import run", "checkpoint (floor 2) imports commands.pretrain"),
        ("tasks.glue", "def late():\n    from gpt1cli import checkpoint", "tasks.glue (floor 1) imports checkpoint"),
        ("models.transformer", "from ..fit import fit", "models.transformer (floor 1) imports fit"),
        ("kernels", "from gpt1cli.config.schema import Key", "kernels imports schema: the lowest floor"),
        ("schema", "from . import kernels", "schema imports kernels: the lowest floor"),
        ("cli", "from gpt1cli.commands import pretrain", "cli imports commands.pretrain: before a command is chosen"),
        ("compose", "from gpt1cli import hub", "compose imports hub: before a command is chosen"),
        ("commands.pretrain", "from .finetune import run", "commands.pretrain imports commands.finetune: commands"),
        ("checkpoint", "from gpt1cli import fit", "circle: checkpoint -> fit -> checkpoint"),
        ("tasks.layouts", "from . import glue", "circle: tasks.glue -> tasks.layouts -> tasks.glue"),
        ("fit", "from omegaconf import DictConfig", "fit imports omegaconf: only"),
        ("commands.pretrain", "import hydra.utils", "commands.pretrain imports hydra: only"),
        ("fit", "from datasets import load_dataset", "fit imports datasets: only"),
        ("hub", "import ftfy", "hub imports ftfy: only text may"),
        ("tasks.glue", "import spacy", "tasks.glue imports spacy: only text may"),
        ("fit", "from rich.live import Live", "fit imports rich: only"),
        ("fit", "import wandb", "fit imports wandb: only trackers may"),
        ("rundir", "def environment():\n    import torch", "rundir imports torch: it must not"),
        ("cli", "from torch import nn", "cli imports torch: it must not"),
    ],
)
def test_a_broken_rule_is_told(module: str, line: str, told: str):
    found = offences({**SOUND, module: SOUND.get(module, "") + line + "\n"})
    assert len(found) == 1 and found[0].startswith(told)


def test_what_answers_at_once_loads_nothing_heavy():
    """Indirect imports too: `gpt1 --help` must not wait for torch."""
    quick = ", ".join(f"{PACKAGE}.{name}" for name in sorted(QUICK - {"__main__"}))
    code = f"import sys, {quick}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert "gpt1cli.config.commands" in done.stdout.split()
    assert not {"torch", "datasets", "spacy", "ftfy", "transformers", "sklearn", "scipy"} & set(done.stdout.split())
