"""The project files are consistent: dependencies, pins, Makefile, wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
DISTRIBUTION = {  # import name -> distribution name, if they differ
    "hydra": "hydra-core", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip


def requirements() -> list[Requirement]:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras]


def pins() -> dict[str, str]:
    """Distribution -> exact version; every line except comments must be such a pin."""
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement):
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_torch_is_pinned_without_a_build_and_without_its_cuda_packages():
    assert pins()["torch"] == "2.13.0"
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run"])
def test_no_package_index_or_url_is_written_down(file: str):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|git\+|index-url|find-links| @ |pypi|pythonhosted", text, re.IGNORECASE)


def test_every_import_of_the_package_is_declared():
    imported = set()
    for path in (ROOT / "gpt1cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    third_party = imported - sys.stdlib_module_names - {"gpt1cli"}
    extras = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {canonicalize_name(Requirement(line).name) for line in [*PROJECT["dependencies"], *extras]}
    assert {canonicalize_name(DISTRIBUTION.get(name, name)) for name in third_party} <= declared


def test_every_make_target_has_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    assert {"setup", "demo", "test", "test-full", "lint", "clean"} <= set(targets)
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in targets:
        assert re.search(rf"^  make {target} +\S", listed, re.MULTILINE), f"{target} has no ## help"


def test_wheel_contains_conf_and_the_command(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("gpt1-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    options = {f"gpt1cli/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert "gpt1cli/conf/model/base.yaml" in options
    assert options <= names and {"gpt1cli/config/commands.py", "gpt1cli/reporting/published_numbers.yaml"} <= names
    assert not [name for name in names if name.startswith(("conf/", "tests/"))]
    assert "gpt1 = gpt1cli.__main__:main" in entry_points
