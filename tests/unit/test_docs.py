"""The reference in docs/ names what there is, and its recipe lines are accepted as they stand."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo.algo import ADVANTAGES, AGGREGATORS, CORRECTIONS, SURROGATES
from grpo.algo.bias import debias_factors
from grpo.algo.shadow import weight_facts
from grpo.config.load import load_recipe
from grpo.errors import UserError
from grpo.preflight.check import check_recipe
from grpo.registry import Registry
from grpo.verify import VERIFIERS
from tests.unit.theorems import accuracy_bias

ROOT = Path(__file__).parents[2]
ALGORITHMS = (ROOT / "docs" / "algorithms.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()

REGISTRIES: dict[str, Registry[Callable[..., Any]]] = {
    "advantage": ADVANTAGES,
    "aggregate": AGGREGATORS,
    "surrogate": SURROGATES,
    "correction": CORRECTIONS,
    "verifier": VERIFIERS,
}
# Parts of our own: a plugin of another test may have added to the registries.
PARTS = [
    (key, name)
    for key, registry in REGISTRIES.items()
    for name in registry
    if registry[name].__module__.startswith("grpo.")
]
NAMES = sorted({name for _, name in PARTS})

TOP_KEYS = (*REGISTRIES, "difficulty", "flat_groups", "overlong", "regularization")
MODULES = (
    "train/metrics.py",
    "train/goodput.py",
    "train/paid.py",
    "train/shadows.py",
    "train/trainer.py",
    "train/update.py",
    "fleet/learner.py",
    "learner/usage.py",
    "algo/shadow.py",
)
METRIC = re.compile(
    r"tokens_seen|(reward|length|truncated|no_answer|groups|verdict|throughput|time|sync|learn|mismatch"
    r"|difficulty|shadow|eval|goodput|staleness|memory|heal)/[^/].*"
)
HOLE = "<>"  # what an f-string fills in while it runs

BASE = """
name: base
model: {path: org/model}
data: {name: sums, task: {name: arithmetic, rows: 8}}
"""


# --- names ---


def code_spans(text: str) -> list[str]:
    """What stands in backticks on one line, fenced blocks left out."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def undocumented(names: Iterable[str], text: str) -> list[str]:
    spans = set(code_spans(text))
    return [name for name in names if name not in spans]


def mentioned(trees: Iterable[ast.Module]) -> set[str]:
    """Strings of the modules, and what they import from this project."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grpo."):
                found |= {alias.name for alias in node.names}
    return found


def untested(names: Iterable[str], trees: Iterable[ast.Module]) -> list[str]:
    found = mentioned(trees)
    return [name for name in names if name not in found]


def test_every_part_stands_in_the_reference():
    assert undocumented(NAMES, ALGORITHMS) == []


def test_every_part_is_named_by_another_test():
    files = sorted((ROOT / "tests").rglob("*.py"))
    trees = [ast.parse(path.read_text()) for path in files if path != Path(__file__)]
    assert untested(NAMES, trees) == []


def test_a_part_that_nobody_wrote_about_is_found():
    text = "`group_norm` and new_part\n```\n`new_part`\n```\n"
    assert undocumented(["group_norm", "new_part"], text) == ["new_part"]
    tree = ast.parse('"""About new_part."""\nfrom grpo.algo.advantage import rloo\nA["gspo"]\n')
    assert untested(["rloo", "gspo", "new_part"], [tree]) == ["new_part"]
    assert undocumented(["made_up_rule"], ALGORITHMS) == ["made_up_rule"]


# --- metrics ---


def logged_names(tree: ast.Module) -> set[str]:
    """Metric names among the module's strings, with HOLE for what an f-string fills in."""
    nodes = list(ast.walk(tree))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.JoinedStr):  # comes before its own parts
            skipped |= {id(part) for part in node.values}
            parts = [p.value if isinstance(p, ast.Constant) else HOLE for p in node.values]
            found.add("".join(str(part) for part in parts))
        elif isinstance(node, ast.Constant) and id(node) not in skipped:
            found.add(str(node.value))
    return {name for name in found if METRIC.fullmatch(name)}


def rows(text: str) -> list[str]:
    """The names that rows of the tables begin with."""
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def pattern(name: str) -> str:
    return re.escape(name).replace(re.escape(HOLE), "[^/]+")


def unexplained(names: Iterable[str], text: str) -> list[str]:
    """Names without a row of their own; a HOLE is filled by `<word>` or any one part."""
    known = rows(text)
    return sorted(n for n in names if not any(re.fullmatch(pattern(n), row) for row in known))


def facts_of_a_shadow() -> set[str]:
    ones_N = torch.ones(2, dtype=torch.float64)
    return {f"shadow/<rule>/{fact}" for fact in weight_facts(ones_N, ones_N, ones_N, ones_N > 0)}


@pytest.mark.parametrize("module", MODULES)
def test_every_metric_has_a_row(module: str):
    names = logged_names(ast.parse((ROOT / "grpo" / module).read_text()))
    assert names, f"{module} logs nothing: was it moved?"
    assert unexplained(names, METRICS) == []


def test_every_fact_of_a_shadow_has_a_row():
    assert unexplained(facts_of_a_shadow(), METRICS) == []


def test_no_row_is_about_a_metric_that_nobody_logs():
    trees = [ast.parse((ROOT / "grpo" / module).read_text()) for module in MODULES]
    logged = {name for tree in trees for name in logged_names(tree)}
    logged = logged - {f"shadow/{HOLE}/{HOLE}"} | facts_of_a_shadow()
    patterns = [pattern(name) for name in logged]
    assert [row for row in rows(METRICS) if not any(re.fullmatch(p, row) for p in patterns)] == []


def test_a_metric_that_nobody_explained_is_found():
    tree = ast.parse(
        '"""learn/of_a_docstring."""\n'
        'm = {"learn/loss": 1, "learn/made_up": 2, f"shadow/{rule}/{fact}": 3, "mismatch/": 4}\n'
        'm[f"verdict/{reason}/made_up"] = m["some words"]\n'
    )
    names = logged_names(tree)
    assert names == {"learn/loss", "learn/made_up", "shadow/<>/<>", "verdict/<>/made_up"}
    assert unexplained(names, METRICS) == ["learn/made_up", "verdict/<>/made_up"]
    assert unexplained(["shadow/<rule>/made_up"], METRICS) == ["shadow/<rule>/made_up"]


# --- recipes ---


def snippets(text: str) -> Iterator[str]:
    """Fenced YAML, and what stands in backticks and begins with a key of a recipe."""
    yield from re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for span in code_spans(text):
        if span.split(": ")[0] in TOP_KEYS and ": " in span:
            yield span


def choice(key: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The name and the options that a recipe's value gives to a part."""
    if isinstance(value, str):
        return value, {}
    if key == "verifier":
        return value["name"], value.get("options", {})
    return value["name"], {option: v for option, v in value.items() if option != "name"}


def accept(snippet: str, folder: Path) -> None:
    """Raises UserError where the snippet, laid over a small recipe, is refused."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "overlay.yaml"
    path.write_text(f"extends: base.yaml\n{snippet}\n")
    check_recipe(load_recipe(path))


@pytest.mark.parametrize("snippet", list(dict.fromkeys(snippets(ALGORITHMS))))
def test_every_snippet_is_accepted(snippet: str, tmp_path: Path):
    accept(snippet, tmp_path)


@pytest.mark.parametrize(
    ("snippet", "message"),
    [
        ("advantage: made_up", "unknown advantage 'made_up'"),
        ("aggregate: {name: delta_l, alfa: 1.0}", "did you mean 'alpha'"),
        ("difficulty: {kind: soft}", "difficulty.kind"),
        ("advantage: rloo\nsurrogat: gspo", "unknown key 'surrogat'"),
    ],
)
def test_a_snippet_with_a_mistake_is_refused(snippet: str, message: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        accept(snippet, tmp_path)
    assert message in str(error.value)


def lines_with_defaults(key: str, name: str, text: str) -> list[Mapping[str, Any]]:
    """The options of those snippets for this part that show each at its default."""
    parameters = REGISTRIES[key].options(name)
    defaults = {option: parameter.default for option, parameter in parameters.items()}
    values = [tree[key] for tree in map(yaml.safe_load, snippets(text)) if key in tree]
    shown = [options for part, options in (choice(key, v) for v in values) if part == name]
    return [options for options in shown if same(options, defaults)]


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[key] == (pytest.approx(right[key]) if isinstance(right[key], float) else right[key])
        for key in right
    )


@pytest.mark.parametrize(("key", "name"), PARTS)
def test_a_recipe_line_shows_every_option_at_its_default(key: str, name: str):
    assert lines_with_defaults(key, name, ALGORITHMS)


def test_a_recipe_line_that_fell_behind_the_code_is_found():
    assert lines_with_defaults("aggregate", "token_mean", "`aggregate: {name: token_mean}`") == []
    for clip in ("0.2", "0.1"):
        line = (
            f"`surrogate: {{name: ppo_clip, clip_low: {clip}, clip_high: 0.28, dual_clip: 10.0}}`"
        )
        assert bool(lines_with_defaults("surrogate", "ppo_clip", line)) == (clip == "0.2")


# --- numbers ---


def test_the_table_of_biases_is_what_the_module_computes():
    table = re.findall(r"^\| (0\.\d+)((?: \| -?\d\.\d{4}){9}) \|$", ALGORITHMS, flags=re.MULTILINE)
    assert [float(p) for p, _ in table] == [0.1, 0.25, 0.5, 0.75]
    for p, cells in table:
        shown = [float(cell) for cell in cells.split("|")[1:]]
        known = [
            value
            for size in (4, 8, 16)
            for value in (accuracy_bias(float(p), size), *debias_factors(float(p), size))
        ]
        assert shown == pytest.approx(known, abs=5.1e-5, rel=0)
