"""Rules of the house that hold for every file of the package."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "assay"
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
each_file = pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda file: str(file.relative_to(SRC)))
each_loss = pytest.mark.parametrize("file", sorted(SRC.glob("losses/*.py")), ids=lambda file: file.name)


def imports_below(code: str, package: str) -> list[str]:
    """Each import of a package or a part of it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if any(f"{name}.".startswith(f"{package}.") for name in names):
            found.append(ast.unparse(node))
    return found


def unsafe(code: str) -> list[str]:
    """Each import and call by which a file that is read could run code."""
    imports = [line for package in UNSAFE_MODULES for line in imports_below(code, package)]
    return imports + [ast.unparse(node) for node in ast.walk(ast.parse(code)) if _call_is_unsafe(node)]


def _call_is_unsafe(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True":
        return True
    return any(given.get(word, "False") != "False" for word in ("trust_remote_code", "allow_pickle"))


def without_source(code: str) -> list[str]:
    """Public functions whose docstring names no source."""
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    public = [function for function in functions if not function.name.startswith("_")]
    return [function.name for function in public if "Source:" not in (ast.get_docstring(function) or "")]


@each_file
def test_a_file_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


@each_file
def test_no_file_runs_code_that_it_reads(file: Path) -> None:
    assert unsafe(file.read_text()) == []


@each_file
def test_only_the_engine_knows_processes(file: Path) -> None:
    """The import contracts see an external package as a whole, so they cannot forbid a part of torch."""
    if "engine" not in file.parts:
        assert imports_below(file.read_text(), "torch.distributed") == []


@each_loss
def test_every_loss_names_its_source(file: Path) -> None:
    assert without_source(file.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, dill",
        "from joblib.numpy_pickle import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from_pretrained(name, trust_remote_code=True)",
        "from_pretrained(name, trust_remote_code=anything)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_lines_are_found(line: str) -> None:
    assert unsafe(line) == [line]


@pytest.mark.parametrize("line", ["torch.load(path, weights_only=True)", "json.load(file)", "import picklish"])
def test_safe_lines_pass(line: str) -> None:
    assert unsafe(line) == []


def test_a_missing_source_is_found() -> None:
    code = 'def a():\n    "Source: X 2020."\ndef b():\n    "Sum."\ndef c(): ...\ndef _d(): ...\n'
    assert without_source(code) == ["b", "c"]


@pytest.mark.parametrize(
    "line",
    ["import torch.distributed as dist", "from torch import distributed", "from torch.distributed.fsdp import x"],
)
def test_imports_of_a_part_are_found(line: str) -> None:
    assert imports_below(line, "torch.distributed") == [line]
    assert imports_below("import torch, torch.distributions", "torch.distributed") == []
