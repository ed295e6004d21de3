"""The reference of every key that a recipe, a declaration of data or a suite may have.

Reads the pydantic models of `grpo.config`, whose imports are light: the site needs no torch.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, Strict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from grpo.config.data import Choice, DataConfig
from grpo.config.recipe import Recipe
from grpo.config.suite import SuiteConfig

Model = type[BaseModel]

# A page for each kind of file; what stands on another page is linked to it.
PAGES: dict[str, tuple[str, Model, str]] = {
    "recipe": ("Recipe keys", Recipe, "`recipes/*.yaml`, and `KEY=VALUE` of `grpo train`."),
    "data": ("Data keys", DataConfig, "`data/*.yaml`, and `data` of a recipe or a benchmark."),
    "suite": ("Suite keys", SuiteConfig, "`eval/*.yaml`, and `eval.suite` of a recipe."),
}
_PARTS = {
    "advantage": "advantages",
    "aggregate": "aggregators",
    "surrogate": "surrogates",
    "correction": "corrections",
    "verifier": "verifiers",
    "task": "tasks",
}


def page(name: str) -> str:
    """The Markdown of one page."""
    title, root, where = PAGES[name]
    lines = [f"# {title}", "", where, "", *_INTRODUCTION]
    for path, model in sections(root, ""):
        lines += ["", f"## {_heading(path)} {{ #{anchor(path)} }}", "", _prose(model.__doc__), ""]
        lines += ["| key | type | default | description |", "|---|---|---|---|"]
        lines += [_row(path, key, field) for key, field in model.model_fields.items()]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "Written by the build from `grpo/config/`. A key without a default is required. "
    "Unknown keys, and values of another type, are errors with file and line.",
)


def sections(root: Model, path: str) -> Iterator[tuple[str, Model]]:
    """Every model that this page describes with the dotted path of its keys."""
    yield path, root
    for key, field in root.model_fields.items():
        inner = section(field)
        if inner is not None and _page_of(inner) is None:
            many = "N." if get_origin(_plain(field.annotation)) is list else ""
            yield from sections(inner, f"{path}{key}.{many}")


def section(field: FieldInfo) -> Model | None:
    """The model whose keys stand below this one, if any does."""
    models = [m for m in _models(field.annotation) if m is not Choice]
    return models[0] if models else None


def describe(field: FieldInfo) -> str:
    """What the key says of itself, else the first paragraph of its section's docstring."""
    inner = section(field)
    text = field.description or (inner.__doc__ or "" if inner else "")
    return " ".join(text.split("\n\n")[0].split())


def anchor(path: str) -> str:
    """Of a section; a key is its section's anchor with its own name."""
    return path.rstrip(".").replace(".", "-") or "top"


def key_anchor(path: str, key: str) -> str:
    return f"key-{path}{key}".replace(".", "-")


def _heading(path: str) -> str:
    return f"`{path.rstrip('.')}`" if path else "Top level"


def _row(path: str, key: str, field: FieldInfo) -> str:
    shown = f'<span id="{key_anchor(path, key)}"></span>`{path}{key}`'
    inner = section(field)
    text = _cell(describe(field))
    if inner is not None:
        of = _page_of(inner)
        target = f"{of}.md" if of else f"#{anchor(f'{path}{key}')}"
        if get_origin(_plain(field.annotation)) is list and of is None:
            target = f"#{anchor(f'{path}{key}.N')}"
        text = f"{_sentence(text)} [Its keys]({target})"
    elif any(m is Choice for m in _models(field.annotation)) and key in _PARTS:
        text = f"{_sentence(text)} [Names and options](parts.md#{_PARTS[key]})"
    return f"| {shown} | {_cell(_type(field))} | {_cell(_default(field))} | {text} |"


def _type(field: FieldInfo) -> str:
    limits = [text for part in field.metadata if (text := _limit(part))]
    return ", ".join([_named(field.annotation), *limits])


def _limit(constraint: Any) -> str:
    match constraint:
        case Gt(gt=bound):
            return f"> {bound:g}"
        case Ge(ge=bound):
            return f"≥ {bound:g}"
        case Lt(lt=bound):
            return f"< {bound:g}"
        case Le(le=bound):
            return f"≤ {bound:g}"
        case MinLen(min_length=least):
            return f"at least {least}"
        case Strict():
            return ""
    pattern = vars(constraint).get("pattern")  # pydantic's own class for it is private
    return f"`{pattern}`" if pattern else ""


def _named(kind: Any) -> str:
    if kind is None or kind is type(None):
        return "null"
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin is list or (origin is tuple and inside[-1] is Ellipsis):
        return f"list of {_named(inside[0])}"
    if origin is dict:
        return "mapping" if inside[1] is Any else f"mapping to {_named(inside[1])}"
    if origin is tuple:
        return f"list of {len(inside)}: {', '.join(map(_named, inside))}"
    if inside:  # a union
        return " or ".join(map(_named, inside))
    if kind is Choice:
        return "name, or mapping with name and options"
    if issubclass(kind, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(
        kind, kind.__name__
    )


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Choice):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return "its own"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value or repr(value)}`"


def _models(kind: Any) -> Iterator[Model]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inside in get_args(kind):
        yield from _models(inside)


def _plain(kind: Any) -> Any:
    """Without "or null"."""
    left = [inside for inside in get_args(kind) if inside is not type(None)]
    return left[0] if type(None) in get_args(kind) and len(left) == 1 else kind


def _page_of(model: Model) -> str | None:
    return next((name for name, (_, root, _) in PAGES.items() if root is model), None)


def _prose(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").strip().splitlines())


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
