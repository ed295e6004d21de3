"""The tables of docs/plan.md are what `grpo plan` says today."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from grpo.cli.plan import plan
from grpo.config.load import load_recipe
from grpo.config.shipped import shipped
from grpo.learner.shapes import model_shape
from grpo.preflight.advice import fits
from grpo.preflight.layout import Machine

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
    for option in plan.__kwdefaults__ or ():
        assert f"`--{option.replace('_', '-')}" in page


GUIDE = re.findall(
    r"^\| (?:(\d+) × )?(\d+) × (\d+) GB \| `grpo train ([^`]+)` \|",
    (ROOT / "docs" / "gpu.md").read_text(),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize(("nodes", "gpus", "gib", "command"), GUIDE)
def test_a_command_of_the_guide_fits_on_its_machine(
    nodes: str, gpus: str, gib: str, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    name, *overrides = command.split()
    recipe = load_recipe(name, overrides)
    machine = Machine("cuda", float(gib), int(gpus), int(nodes or 1))
    assert fits(recipe, model_shape(recipe)[0], machine)


def test_the_guide_has_commands_for_one_two_four_and_eight_gpus_and_two_nodes():
    assert {(nodes, gpus) for nodes, gpus, _, _ in GUIDE} == {
        ("", "1"),
        ("", "2"),
        ("", "4"),
        ("", "8"),
        ("2", "8"),
    }


def test_every_override_of_the_measurements_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "gpu.md").read_text()
    short, one = (
        re.search(rf"`{word}`\s+(?:stands\s+)?for\s+`([^`]+)`", page) for word in ("SHORT", "ONE")
    )
    assert short is not None and one is not None
    commands = re.findall(r"`grpo train ([^`]+ name=m\d[^`]*)`", page)
    assert len(commands) == 6
    for command in commands:
        whole = command.replace("SHORT", short[1]).replace("ONE", one[1])
        name, *overrides = whole.split()
        load_recipe(name, overrides)
