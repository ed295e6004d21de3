"""The tables of docs/plan.md are what `grpo plan` says today."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from grpo.cli.plan import plan
from grpo.config.shipped import shipped

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "docs" / "_tools" / "fits.py"


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("fits", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_fits_where_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # a copy there would come first
    page = (ROOT / "docs" / "plan.md").read_text()
    assert tool().page(page) == page, "run `make plans`"
    for name in shipped("recipes"):
        assert page.count(f"`{name}`") == 4, name


def test_the_page_names_every_option_of_the_command():

    page = (ROOT / "docs" / "plan.md").read_text()
    for option in plan.__kwdefaults__:
        assert f"`--{option.replace('_', '-')}" in page
