"""Every registered part with its options, read from the sources without importing torch."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

# heading -> key of a recipe, registry, and the files that register into it
KINDS: dict[str, tuple[str, str, str]] = {
    "Advantages": ("advantage", "ADVANTAGES", "grpo/algo/*.py"),
    "Aggregators": ("aggregate", "AGGREGATORS", "grpo/algo/*.py"),
    "Surrogates": ("surrogate", "SURROGATES", "grpo/algo/*.py"),
    "Corrections": ("correction", "CORRECTIONS", "grpo/algo/*.py"),
    "Verifiers": ("verifier", "VERIFIERS", "grpo/verify/*.py"),
    "Tasks": ("data.task", "TASKS", "grpo/data/*.py"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """name as in a recipe; options: (name, type, default) as the source says"""

    name: str
    doc: str
    options: tuple[tuple[str, str, str], ...]


def parts(registry: str, pattern: str) -> list[Part]:
    """Those that a decorator `@REGISTRY.register("name")` registers, by name."""
    found: list[Part] = []
    for path in sorted(ROOT.glob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and (name := _registered(node, registry)):
                doc = ast.get_docstring(node) or ""
                found.append(Part(name, doc, tuple(_options(node, registry))))
    return sorted(found, key=lambda part: part.name)


def page() -> str:
    """The Markdown of the page."""
    lines = [
        "# Parts and their options",
        "",
        "Written by the build from the sources. An option is a keyword of the part: "
        "`aggregate: {name: balanced, scope: batch}`; those of a verifier stand under `options`: "
        "`verifier: {name: math_within, options: {relative: 0.01}}`. Formulas, papers and advice: "
        "[Algorithms](../algorithms.md), [Verifiers](../verifiers.md).",
    ]
    for heading, (key, registry, pattern) in KINDS.items():
        lines += ["", f"## {heading}", "", f"Key `{key}`, registry `{registry}`."]
        for part in parts(registry, pattern):
            lines += ["", f"### `{part.name}` {{ #{key.replace('.', '-')}-{part.name} }}", ""]
            lines += [_prose(part.doc)]
            if part.options:
                lines += ["", "| option | type | default |", "|---|---|---|"]
                lines += [f"| `{n}` | `{_cell(t)}` | {d} |" for n, t, d in part.options]
    return "\n".join(lines) + "\n"


def _registered(node: ast.FunctionDef, registry: str) -> str | None:
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and ast.unparse(decorator.func) == f"{registry}.register"
        ):
            return str(ast.literal_eval(decorator.args[0]))
    return None


def _options(node: ast.FunctionDef, registry: str) -> Iterator[tuple[str, str, str]]:
    supplied = _supplied()[registry]
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if argument.arg not in supplied:
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            shown = "required" if default is None else f"`{ast.unparse(default)}`"
            yield argument.arg, kind, shown


@cache
def _supplied() -> dict[str, tuple[str, ...]]:
    """What the trainer passes itself, by registry: `supplied` of its constructor."""
    out: dict[str, tuple[str, ...]] = {}
    for path in sorted((ROOT / "grpo").glob("*/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
                continue
            if ast.unparse(node.value.func) == "Registry":
                given = {k.arg: k.value for k in node.value.keywords}
                names = ast.literal_eval(given["supplied"]) if "supplied" in given else ()
                out[ast.unparse(node.target)] = names
    return out


def _prose(text: str) -> str:
    return text.replace("*", r"\*").replace("<", "&lt;").replace("[", r"\[")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
