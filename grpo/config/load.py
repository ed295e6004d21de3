"""Reads a YAML file, the files that it extends and `key=value` overrides into a checked recipe."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from grpo.config.recipe import Choice, DataConfig, Recipe
from grpo.config.shipped import Kind, find
from grpo.config.suite import BenchmarkConfig, SuiteConfig
from grpo.errors import UserError
from grpo.registry import nearest

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]
Marks = dict[Key, str]

# A string here names a file to extend; so does an item of a list under "benchmarks".
_FILE_KEYS = ("data", "suite")
_FILE_LISTS = ("benchmarks",)
# Below these the keys belong to vLLM, a part or a chat template: a string there names no file.
_FREE_KEYS = ("engine", "options", "chat_template_kwargs")
# Where one of these names another part, the options of the base's part are dropped.
_CHOICE_KEYS = ("task", "advantage", "aggregate", "surrogate", "correction", "verifier")
_COMMAND_LINE = "command line"


class _Replacing(dict[str, Any]):
    """A mapping read from a file of its own, such as a data set or a suite. It replaces the
    mapping that it overrides as a whole, so that no column or template of the old one is left."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: 5e-5 is a number; off, on, yes, no, 010 and 1:30 are words."""


_BOOL, _INT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _INT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(0|[1-9]\d*)$", re.ASCII), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\d+[eE][-+]?\d+$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
        re.ASCII,
    ),
    list("-+0123456789."),
)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """From a file, or the name of a recipe that comes with the package. Raises UserError naming
    every bad key with its file and line."""
    return _load(Recipe, find(str(name), "recipes"), overrides)


def load_suite(name: str | Path, overrides: Sequence[str] = ()) -> SuiteConfig:
    """The same for a suite. Of one that is a single benchmark its keys may be written as those of
    the first of several."""
    path = find(str(name), "eval")
    if "benchmarks" not in _read(path, (), {}, ()):
        overrides = [override.removeprefix("benchmarks.0.") for override in overrides]
    return _load(SuiteConfig, path, overrides)


def load_data(name: str | Path, overrides: Sequence[str] = ()) -> DataConfig:
    """The same for a declaration of data."""
    return _load(DataConfig, find(str(name), "data"), overrides)


def parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as (["a", "b"], value), the value read as in a file. Raises UserError."""
    dotted, node = _split_override(text)
    return dotted.split("."), None if node is None else _plain(node, (), _COMMAND_LINE, {})


def resolved(model: BaseModel) -> dict[str, Any]:
    """Every key with its value, as plain data that YAML and JSON can hold."""
    return model.model_dump(mode="json")


def _load(kind: type[Model], path: Path, overrides: Sequence[str]) -> Model:
    marks: Marks = {}
    tree = _read(path, (), marks, ())
    for override in overrides:
        tree = _override(tree, override, marks)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, kind, marks, path)) from None


def _read(path: Path, at: Key, marks: Marks, chain: tuple[Path, ...]) -> dict[str, Any]:
    """A file's mapping with everything that it extends merged in. `at` is where it goes."""
    if path.resolve() in chain:
        names = " -> ".join(str(p) for p in (*chain, path.resolve()))
        raise UserError(f"files extend each other in a circle: {names}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: expected a mapping of keys to values at the top")
    mine: Marks = {}
    tree = _plain(node, at, str(path), mine)
    out = _extend(tree, at, path, marks, (*chain, path.resolve()))
    marks |= mine
    return out


def _plain(
    node: yaml.Node, at: Key, source: str, marks: Marks, around: tuple[yaml.Node, ...] = ()
) -> Any:
    """The node as plain data; `marks` records where every key was written."""
    line = source if source == _COMMAND_LINE else f"{source}:{node.start_mark.line + 1}"
    if node in around:
        raise UserError(f"{line}: a value contains itself")
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a single word")
            key = str(key_node.value)
            mark = _COMMAND_LINE
            if source != _COMMAND_LINE:
                mark = f"{source}:{key_node.start_mark.line + 1}"
            if key in out:
                raise UserError(f"{mark}: key {key!r} appears twice in one mapping: keep one")
            marks[(*at, key)] = mark
            out[key] = _plain(value_node, (*at, key), source, marks, around)
        return out
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return [_plain(item, (*at, i), source, marks, around) for i, item in items]
    try:
        return _Loader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{line}: {node.value!r} is not a valid {node.tag!r}") from None


def _extend(tree: Any, at: Key, path: Path | None, marks: Marks, chain: tuple[Path, ...]) -> Any:
    """Replaces every `extends: FILE`, and every string short for one, by the file's content. The
    file is looked for beside `path`, too, which names it; None for the command line."""
    free = any(key in _FREE_KEYS for key in at)
    if isinstance(tree, list):
        names_files = bool(at) and at[-1] in _FILE_LISTS and not free
        items = [{"extends": i} if names_files and isinstance(i, str) else i for i in tree]
        return [_extend(item, (*at, i), path, marks, chain) for i, item in enumerate(items)]
    if not isinstance(tree, dict):
        return tree
    own: dict[Any, Any] = {}
    in_list = bool(at) and at[-1] in _FILE_LISTS  # an override reaches an item by its position
    for key, value in tree.items():
        names_file = key in _FILE_KEYS or (in_list and isinstance(key, int))
        if names_file and not free and isinstance(value, str):
            value = {"extends": value}
        own[key] = _extend(value, (*at, key), path, marks, chain)
    base_name = own.pop("extends", None)
    if base_name is None:
        return own
    if not isinstance(base_name, str):
        raise UserError(f"{path or _COMMAND_LINE}: extends must name one file, got {base_name!r}")
    return _Replacing(_merge(_read(find(base_name, _kind(at), path), at, marks, chain), own))


def _kind(at: Key) -> Kind | None:
    """What a file that is named at this place declares; None for the base of the whole file."""
    key = at[-2] if len(at) > 1 and isinstance(at[-1], int) else at[-1] if at else ""
    if key == "data":
        return "data"
    return "eval" if key == "suite" or key in _FILE_LISTS else None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merged_choice(old, value) if key in _CHOICE_KEYS else _merged(old, value)
    return out


def _merged(old: Any, new: Any) -> Any:
    mixes = isinstance(old, dict) and isinstance(new, dict) and not isinstance(new, _Replacing)
    return _merge(old, new) if mixes else new


def _merged_choice(old: Any, new: Any) -> Any:
    """A part of the same name keeps the options that the newer one does not set."""
    old = {"name": old} if isinstance(old, str) else old
    new = {"name": new} if isinstance(new, str) else new
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "name" in new and new["name"] != old.get("name"):
        # A recipe's verifier also has its pool's settings, which are not the part's options.
        kept = {k: v for k, v in old.items() if k in ("workers", "timeout_s", "shadows")}
        return kept | new
    return _merge(old, new)


def _split_override(text: str) -> tuple[str, yaml.Node | None]:
    dotted, equals, raw = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UserError(f"{text!r}: expected key=value, e.g. learner.lr=1e-5")
    try:
        return dotted, yaml.compose(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r}: the value is not valid YAML: {error}") from None


def _override(tree: dict[str, Any], text: str, marks: Marks) -> dict[str, Any]:
    """The tree with one `a.b.c=value` applied."""
    dotted, node = _split_override(text)
    path: list[str | int] = [int(p) if p.isdecimal() else p for p in dotted.split(".")]
    nested = None if node is None else _plain(node, tuple(path), _COMMAND_LINE, marks)
    for part in reversed(path[1:]):
        nested = {part: nested}
    marks[tuple(path)] = _COMMAND_LINE
    change = _extend({path[0]: nested}, (), None, marks, ())
    return _merge_at(tree, change, dotted)


def _merge_at(tree: Any, change: dict[Any, Any], dotted: str) -> Any:
    """Like _merge, and an integer key reaches into a list."""
    if isinstance(tree, list):
        (index, value), *_ = change.items()
        if not isinstance(index, int) or index >= len(tree):
            raise UserError(f"{dotted}: expected a position below {len(tree)}, got {index!r}")
        out = list(tree)
        nested = isinstance(value, dict) and isinstance(tree[index], dict | list)
        nested = nested and not isinstance(value, _Replacing)
        out[index] = _merge_at(tree[index], value, dotted) if nested else value
        return out
    out = dict(tree)
    for key, value in change.items():
        old = out.get(key)
        if key in _CHOICE_KEYS:
            out[key] = _merged_choice(old, value)
        elif isinstance(old, dict | list) and isinstance(value, dict) and value:
            whole = isinstance(value, _Replacing)
            out[key] = value if whole else _merge_at(old, value, dotted)
        else:
            out[key] = value
    return out


def _explain(error: ValidationError, kind: type[BaseModel], marks: Marks, path: Path) -> str:
    lines = []
    for problem in error.errors():
        at: Key = problem["loc"]
        dotted = ".".join(str(part) for part in at) or kind.__name__.lower()
        where = _mark(at, marks) or str(path)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, at[:-1])
            hint = nearest(str(at[-1]), known)
            if kind is SuiteConfig and at[0] in BenchmarkConfig.model_fields:
                hint = f": in a suite of several it is benchmarks.0.{dotted}, of the first one"
            lines.append(f"{where}: unknown key {dotted!r}{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: key {dotted!r} is missing")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
            lines.append(f"{where}: {dotted}: {said}{got}")
    return "\n".join(lines)


def _mark(at: Key, marks: Marks) -> str | None:
    """The line of the key, or of the nearest key above it."""
    for end in range(len(at), 0, -1):
        if at[:end] in marks:
            return marks[at[:end]]
    # A suite that is one benchmark alone has its keys at the top of its file.
    return _mark(at[2:], marks) if at[:2] == ("benchmarks", 0) else None


def _known_keys(kind: type[BaseModel], at: Key) -> list[str]:
    """The keys of the section at this place."""
    section = kind
    for part in at:
        if isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            inner = [annotation, *get_args(annotation)]
            models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
            if models and not issubclass(models[0], Choice):
                section = models[0]
    return list(section.model_fields)
