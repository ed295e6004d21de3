"""The house: a floor imports only lower floors, and heavy libraries live on one floor."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Every file at the root; a new one belongs into a folder, or here with a reason.
ROOT_FILES = {
    *("__init__", "console", "errors", "parent", "plugins", "progress", "registry", "stop"),
    *("thinking", "types"),
}
FLOORS = {
    "config": 0,
    "algo": 1,
    "batch": 1,
    "data": 1,
    "store": 1,
    "verify": 1,
    "fleet": 2,
    "learner": 2,
    "rollout": 2,
    "sync": 2,
    "eval": 3,
    "preflight": 3,
    "report": 3,
    "train": 3,
    "cli": 4,
}
HEAVY = {"vllm", "deepspeed", "ray"}


def room_of(module: str) -> str:
    """The folder that a module stands in, or the file where it stands at the root."""
    _, _, inside = module.partition("grpo.")
    return inside.split(".")[0] or "__init__"


def floor_of(module: str) -> int:
    room = room_of(module)
    if room in ROOT_FILES or room == "__version__":
        return 0
    assert room in FLOORS, f"{module} stands on no floor: add its folder to FLOORS"
    return FLOORS[room]


@cache
def modules() -> dict[str, ast.Module]:
    paths = sorted((ROOT / "grpo").rglob("*.py"))
    named = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in named.items()
    }


def imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports would escape this test"
            found.add(node.module)
            if node.module == "grpo":
                found |= {f"grpo.{alias.name}" for alias in node.names}
    return found


@cache
def arrows() -> set[tuple[str, str]]:
    """Who imports whom, within grpo."""
    return {
        (name, other)
        for name, tree in modules().items()
        for other in imports(tree)
        if other.startswith("grpo.")
    }


def test_a_floor_imports_only_its_own_and_lower_floors():
    wrong = [
        f"{name} (floor {floor_of(name)}) imports {other} (floor {floor_of(other)})"
        for name, other in arrows()
        if floor_of(other) > floor_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_folders_do_not_import_each_other_in_a_circle():
    below: dict[str, set[str]] = {folder: set() for folder in FLOORS}
    for name, other in arrows():
        if room_of(name) in FLOORS and room_of(other) in FLOORS and room_of(name) != room_of(other):
            below[room_of(name)].add(room_of(other))
    standing = set(FLOORS)
    while free := {folder for folder in standing if not below[folder] & standing}:
        standing -= free
    assert not standing, {folder: sorted(below[folder] & standing) for folder in sorted(standing)}


def test_the_root_holds_only_what_every_floor_needs():
    assert {path.stem for path in (ROOT / "grpo").glob("*.py")} == ROOT_FILES
    folders = {path.parent.name for path in (ROOT / "grpo").glob("*/*.py")}
    assert folders == set(FLOORS), "one line in FLOORS for each folder"


def test_heavy_libraries_live_on_floor_two_and_ray_in_two_files():
    users = {
        (name, other.split(".")[0])
        for name, tree in modules().items()
        for other in imports(tree)
        if other.split(".")[0] in HEAVY
    }
    of_ray = {name for name, library in users if library == "ray"}
    assert of_ray == {"grpo.fleet.cluster", "grpo.fleet.nodes"}
    assert all(floor_of(name) == 2 for name, _ in users), users
