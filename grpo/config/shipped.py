"""Recipes, data declarations and suites that come with the package; how a name becomes a file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from grpo.errors import UserError
from grpo.registry import nearest

Kind = Literal["recipes", "data", "eval"]

_PACKAGE = Path(__file__).parents[1]
_KINDS: tuple[Kind, ...] = ("recipes", "data", "eval")
_CALLED: Mapping[Kind, str] = {"recipes": "recipe", "data": "data set", "eval": "suite"}
_SUFFIXES = (".yaml", ".yml")


def shipped_root() -> Path:
    """The folder with recipes/, data/ and eval/: within an installed package, or the checkout."""
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def shipped(kind: Kind) -> dict[str, Path]:
    """name -> file, in alphabetical order."""
    files = sorted((shipped_root() / kind).glob("*.yaml"))
    return {file.stem: file for file in files}


def first_comment(file: Path) -> str:
    """The file's description: its first comment, up to a full stop or an empty line."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    said = " ".join(words)
    end = said.find(". ")
    return said if end < 0 else said[: end + 1]


def find(name: str, kind: Kind | None, near: Path | None = None) -> Path:
    """The file of that name: from the working directory, else beside the file `near` that names it
    or one folder up, else the shipped one. A name inside a shipped file means a shipped file. A
    bare name stands for KIND/NAME.yaml, of any kind where `kind` is None. Raises UserError that
    lists the known names."""
    for place in _places(name, kind, near):
        if place.is_file():
            return place
    called = "file" if kind is None else _CALLED[kind]
    if Path(name).is_dir():
        raise UserError(f"{name} is a folder, expected the file of a {called}")
    kinds = _KINDS if kind is None else (kind,)
    here = {file.stem for each in kinds for file in Path(each).glob("*.yaml")}
    known = sorted(here.union(*map(shipped, kinds)))
    looked = ""
    if name.endswith(_SUFFIXES):
        places = dict.fromkeys(str(place.absolute()) for place in _places(name, kind, near))
        looked = f". Looked for {', '.join(places)}"
    raise UserError(
        f"no {called} {name!r}, neither as a file nor in the package"
        f"{nearest(Path(name).stem, known)} Known: {', '.join(known)}{looked}"
    )


def _places(name: str, kind: Kind | None, near: Path | None) -> Iterator[Path]:
    around = [Path(), shipped_root()]
    if near is not None:
        here = near.absolute().parent  # absolute, because the parent of "." is "." again
        if here.parent == shipped_root() and here.name in _KINDS:
            around = [here.parent, *around]  # a folder data/ of the user's must not change it
        else:
            around[1:1] = [here, here.parent]
    file = name if name.endswith(_SUFFIXES) else f"{name}.yaml"
    for folder in around:
        yield folder / name
        yield folder / file
        for one in _KINDS if kind is None else (kind,):
            yield folder / one / file
