"""The stub that stands in for transformers' list of every model names what transformers has."""

import re
from importlib import import_module
from pathlib import Path

import pytest

STUB = Path(__file__).parents[2] / "typings" / "transformers" / "__init__.pyi"
IMPORTS = re.findall(r"^from (\S+) import (\w+) as \2$", STUB.read_text(), re.MULTILINE)
ALIASES = re.findall(r"^(\w+) = (\w+)$", STUB.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_a_name_of_the_stub_is_the_library_s_own(module: str, name: str):
    assert getattr(import_module(module), name) is getattr(import_module("transformers"), name)


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_an_alias_of_the_stub_is_one_of_the_library(alias: str, name: str):
    transformers = import_module("transformers")
    assert getattr(transformers, alias) is getattr(transformers, name)


def test_every_line_of_the_stub_is_checked():
    text = STUB.read_text()
    assert (len(IMPORTS), len(ALIASES)) == (text.count(" import "), text.count(" = "))
