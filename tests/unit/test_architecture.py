"""The pages that describe the house name what stands in it."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.unit.test_layers import FLOORS, ROOT_FILES

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Whole paths only: none of the signs with which a pattern goes on may follow.
PATH = re.compile(r"(?<![\w/.-])((?:grpo|tests|benchmarks)/[\w./-]*[\w/])(?![\w*<{])")
# Files that a worked example asks its reader to write.
MADE_BY_THE_READER = {"grpo/verify/letter.py", "tests/unit/test_letter.py"}


def floors_of(picture: Path) -> dict[str, int]:
    """Name -> floor, as drawn: a floor's number comes before the names on it."""
    drawn: dict[str, int] = {}
    floor = -1
    for text in ElementTree.parse(picture).iter(f"{SVG}text"):
        kind = (text.get("class") or "").split()
        if "number" in kind:
            floor = int(text.text or "")
        elif "name" in kind:
            drawn[text.text or ""] = floor
    return drawn


def paths_in(text: str) -> set[str]:
    return set(PATH.findall(text))


def test_the_picture_of_the_floors_shows_the_folders_of_the_layer_test():
    drawn = floors_of(ROOT / "docs" / "pictures" / "floors.svg")
    files = {name for name in drawn if name.endswith(".py")}
    folders = {name: floor for name, floor in drawn.items() if name not in files}
    assert folders == FLOORS
    assert {name.removesuffix(".py") for name in files} <= ROOT_FILES
    assert {drawn[name] for name in files} == {0}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page: Path):
    named = paths_in(page.read_text()) - MADE_BY_THE_READER
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_a_path_that_is_gone_is_found():
    text = "`grpo/session.py`, grpo/algo/, (`grpo/train/run.py`). see org/grpo/x.py, tests/*.py"
    assert paths_in(text) == {"grpo/session.py", "grpo/algo/", "grpo/train/run.py"}


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=str)
def test_a_picture_has_words_as_text_and_nothing_from_elsewhere(picture: Path):
    elements = list(ElementTree.parse(picture).iter())
    tags = {element.tag.removeprefix(SVG) for element in elements}
    assert {"title", "desc", "text"} <= tags and not tags & {"image", "use", "script"}
    assert "@import" not in picture.read_text() and "url(http" not in picture.read_text()
    assert "prefers-color-scheme: dark" in picture.read_text()
