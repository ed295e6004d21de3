"""The house: a floor imports only lower floors, and heavy libraries live on one floor."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"errors", "types", "config", "registry"},
    {"data", "verify", "algo", "batch", "store", "console"},
    {"rollout", "learner", "sync", "fleet"},
    {"train", "eval", "report", "preflight", "session"},
    {"cli"},
]
HEAVY = {"vllm", "deepspeed", "ray"}


def floor_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "errors"
    floors = [level for level, names in enumerate(FLOORS) if part in names]
    assert floors, f"{module} stands on no floor: add it to FLOORS in {Path(__file__).name}"
    return floors[0]


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


def test_a_floor_imports_only_its_own_and_lower_floors():
    wrong = [
        f"{name} (floor {floor_of(name)}) imports {other} (floor {floor_of(other)})"
        for name, tree in modules().items()
        for other in imports(tree)
        if other.startswith("grpo.")
        and other != "grpo.__version__"
        and floor_of(other) > floor_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_live_on_floor_two_and_ray_in_one_file():
    users = {
        (name, other.split(".")[0])
        for name, tree in modules().items()
        for other in imports(tree)
        if other.split(".")[0] in HEAVY
    }
    assert {name for name, library in users if library == "ray"} == {"grpo.fleet.cluster"}
    assert all(floor_of(name) == 2 for name, _ in users), users
