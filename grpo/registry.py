"""Named parts that a recipe can pick and that outside code can add to."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, create_model

from grpo.errors import UserError


def nearest(name: str, known: list[str]) -> str:
    """A "did you mean" clause, a full stop where nothing is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Mapping[str, Part]):
    """A mapping from names to functions whose keyword-only parameters are their options.

    `kind` is the word error messages use. `supplied` names the keyword-only parameters
    that the trainer passes itself (see `call`), so a recipe cannot set them.
    """

    def __init__(self, kind: str, supplied: tuple[str, ...] = ()):
        self.kind = kind
        self._supplied = supplied
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        def add(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            known = sorted(self._parts)
            raise UserError(
                f"unknown {self.kind} {name!r}{nearest(name, known)} Known: {', '.join(known)}"
            )
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options that a recipe may give to this part, with their defaults."""
        parameters = inspect.signature(self[name]).parameters.values()
        keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        return {p.name: p for p in keyword_only if p.name not in self._supplied}

    def bind(self, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The part with its options filled in, checked against its own signature.

        Raises UserError for an unknown name, an unknown or missing option, or a wrong type.
        """
        known = self.options(name)
        for option in options:
            if option not in known:
                listed = ", ".join(known) or "none"
                raise UserError(
                    f"{self.kind} {name!r} has no option {option!r}"
                    f"{nearest(option, list(known))} Its options: {listed}"
                )
        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.default is p.empty else p.default)
            for p in known.values()
        }
        config = ConfigDict(strict=False, extra="forbid", allow_inf_nan=False)
        model = create_model(name, __config__=config, **fields)
        try:
            checked = model(**options)
        except ValidationError as error:
            first = error.errors()[0]
            option = first["loc"][0]
            raise UserError(
                f"{self.kind} {name!r}, option {option!r}: {first['msg']}, got {first['input']!r}"
            ) from None
        return partial(self[name], **{option: checked.__dict__[option] for option in options})


def call(part: Callable[..., Any], *args: Any, **facts: Any) -> Any:
    """Calls the part with those of the facts that it declares as keywords."""
    declared = inspect.signature(part).parameters
    return part(*args, **{name: fact for name, fact in facts.items() if name in declared})
