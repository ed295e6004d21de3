"""Sizes and habits that keep the code readable in an evening."""

import ast
from functools import cache
from pathlib import Path

import pytest

from grpo.config.load import load_data, load_recipe, load_suite

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "grpo").rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_over_400_lines_and_no_function_over_60(path: Path):
    assert path.read_text().count("\n") <= 400
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_the_median_file_is_at_most_120_lines():
    sizes = sorted(path.read_text().count("\n") for path in SOURCES)
    assert sizes[len(sizes) // 2] <= 120


def test_nothing_asks_our_own_objects_what_they_have():
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("getattr", "hasattr"), f"{path}:{node.lineno}"


def test_a_broad_except_says_its_plan_on_its_line():
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name)
                    and node.type.id in ("Exception", "BaseException")
                )
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                assert not broad or raises or "#" in lines[node.lineno - 1], f"{path}:{node.lineno}"


def private_torch_names(source: str) -> list[str]:
    """Dotted names of torch, imported or written out, with a part such as _this."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        found += [
            name
            for name in names
            if name.split(".")[0] == "torch"
            and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
        ]
    return found


# The only name under which PyTorch documents it ("Extending PyTorch").
DOCUMENTED = {"torch.utils._python_dispatch.TorchDispatchMode"}


@pytest.mark.parametrize("folder", ["grpo", "benchmarks", "tests"])
def test_no_private_name_of_torch_is_used(folder: str):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert set(private_torch_names(path.read_text())) <= DOCUMENTED, path


def test_a_private_name_of_torch_is_found_in_every_form():
    assert private_torch_names("from torch._C import _distributed_c10d as c10d")
    assert private_torch_names("import torch._dynamo")
    assert private_torch_names("from torch.distributed import _functional_collectives")
    assert private_torch_names("x = torch._assert_async(y)")
    assert not private_torch_names(
        "import torch; torch.__version__; self._torch.x; from torch import nn"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert load_recipe(path).name


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_data_declaration_loads(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert load_data(path).name


@pytest.mark.parametrize("path", sorted((ROOT / "eval").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_suite_loads(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert load_suite(path).benchmarks
