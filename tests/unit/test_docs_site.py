"""The generated reference knows every key and every part; the site loads nothing from outside."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, Field

from grpo.algo import ADVANTAGES, AGGREGATORS, CORRECTIONS, SURROGATES
from grpo.config.data import Choice, DataConfig, Section
from grpo.config.recipe import Recipe
from grpo.config.suite import SuiteConfig
from grpo.data.tasks import TASKS
from grpo.verify import VERIFIERS

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "_tools"))

import keys  # noqa: E402  # pyright: ignore[reportMissingImports]
import parts  # noqa: E402  # pyright: ignore[reportMissingImports]

REGISTRIES = {
    "ADVANTAGES": ADVANTAGES,
    "AGGREGATORS": AGGREGATORS,
    "SURROGATES": SURROGATES,
    "CORRECTIONS": CORRECTIONS,
    "VERIFIERS": VERIFIERS,
    "TASKS": TASKS,
}


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Choice:
        yield kind
    for inside in get_args(kind):
        yield from models_in(inside)


def all_models(root: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and all that its fields hold, however deep, without the generator's help."""
    found, left = {root}, [root]
    while left:
        for field in left.pop().model_fields.values():
            new = set(models_in(field.annotation)) - found
            found |= new
            left += new
    return found


MODELS = sorted(all_models(Recipe) | all_models(SuiteConfig), key=lambda model: model.__name__)


def rows(page: str) -> dict[str, str]:
    """dotted key -> its description, of every row of every table"""
    cells = re.findall(r"^\| <span id=\S+</span>`(\S+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE)
    return dict(cells)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_in_the_reference_with_a_description(model: type[BaseModel]):
    pages = {name: keys.page(name) for name in keys.PAGES}
    described = [
        (path, rows(pages[name]))
        for name, (_, root, _) in keys.PAGES.items()
        for path, section in keys.sections(root, "")
        if section is model
    ]
    assert described, f"{model.__name__} is on no page"
    for path, of_page in described:
        for key in model.model_fields:
            assert of_page[f"{path}{key}"].strip(". "), f"{path}{key}"


def test_a_key_without_a_description_has_none_made_up():
    class Inner(Section):
        """What it says of itself.

        And more.
        """

    class Outer(Section):
        bare: int = 3
        said: int = Field(default=3, description="some words")
        inner: Inner = Inner()

    fields = Outer.model_fields
    said = [keys.describe(fields[key]) for key in ("bare", "said", "inner")]
    assert said == ["", "some words", "What it says of itself."]


def test_types_ranges_and_defaults_are_shown_as_in_a_file():
    page = keys.page("recipe")
    assert "`rollout.top_p` | number, > 0, ≤ 1 | `1` |" in page
    assert "`learner.betas` | list of 2: number, number | `[0.9, 0.999]` |" in page
    assert "`model.path` | text or null | null |" in page
    assert "`logging.rollouts` | true or false | `true` |" in page
    assert "`sync.transport` | `auto` or `shm` or `gloo` or `nccl` or `ipc` | `auto` |" in page
    assert "`aggregate` | name, or mapping with name and options | `balanced` |" in page


def test_keys_of_data_and_suites_have_pages_that_others_link_to():
    assert keys.PAGES["data"][1] is DataConfig
    assert "[Its keys](data.md)" in rows(keys.page("recipe"))["data"]
    assert "[Its keys](suite.md)" in rows(keys.page("recipe"))["eval.suite"]


@pytest.mark.parametrize(("_", "registry", "pattern"), parts.KINDS.values(), ids=parts.KINDS)
def test_every_part_and_option_of_the_registries_is_found_in_the_sources(
    _: str, registry: str, pattern: str
):
    there = REGISTRIES[registry]
    ours = [name for name in there if there[name].__module__.startswith("grpo.")]
    found = {
        part.name: [option for option, _, _ in part.options]
        for part in parts.parts(registry, pattern)
    }
    assert found == {name: list(there.options(name)) for name in ours}


def test_the_site_loads_nothing_from_another_host():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert "offline" in config["plugins"]
    assert not {"extra_javascript", "repo_url"} & config.keys()
    assert "//" not in (ROOT / "docs" / "site.css").read_text()
