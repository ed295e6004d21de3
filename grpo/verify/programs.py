"""Which program a response gives: one, decided by its text alone and never by what passes.

the last block -> where functions are called, the last that defines one of them
               -> with the earlier blocks that define what it lacks
"""

import ast
import builtins
import importlib
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

_MOST_BLOCKS = 20  # that are looked at, from the end

_FENCE = re.compile(r"^([ \t]*)```+[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_BROKEN = re.compile(r"^[ \t]*(?:def|async|class)\b|\blambda\b", re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_BUILTIN = frozenset(vars(builtins))
_READING = frozenset({"input", "stdin", "open"})
_PRINTING = frozenset({"print", "write"})
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# LeetCode's functions are methods of it.
_LEETCODE = "Solution"


def blocks(response: str, *, truncated: bool = False) -> list[str]:
    """The blocks marked python, else all blocks.

    One that the end of the response leaves open is a block like the others; where the response was
    cut off there it is half a program, what stands before it are drafts, and there are none.
    """
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(response):
        if fence[2] or opened is None:  # a fence with a word opens, whatever was left open before
            opened = fence
        else:
            found.append(_block(opened, response[opened.end() + 1 : fence.start()]))
            opened = None
    is_open = opened is not None and bool(response[opened.end() + 1 :].strip())
    if opened is not None and is_open:
        found.append(_block(opened, response[opened.end() + 1 :]))
    are_marked = any(language in _PYTHON for language, _ in found)
    counts = [language in _PYTHON or not are_marked for language, _ in found]
    if truncated and is_open and counts[-1]:
        return []
    return [text for (_, text), is_counted in zip(found, counts, strict=True) if is_counted]


def program_of(texts: list[str], asked: Collection[str] = (), given: Collection[str] = ()) -> str:
    """The program that these blocks give; there is at least one.

    asked: names of functions that are called, () where the program is run as a script
    given: names that are there before the program begins
    A script's last block that defines nothing and reads nothing, and only calls what an earlier
    script defines, is an example of its use and left out.
    """
    parts = [_Block(text) for text in texts[-_MOST_BLOCKS:]]
    # A session at the prompt shows a use and is no Python.
    parts = [part for part in parts if not part.text.lstrip().startswith(">>>")] or parts[-1:]
    index = len(parts) - 1
    if asked:
        wanted = {*asked, _LEETCODE}
        may_define = [n for n, part in enumerate(parts) if part.is_broken or part.binds & wanted]
        index = may_define[-1] if may_define else index
    program = parts[index]
    while index > 0:
        index -= 1
        earlier = parts[index]
        if not earlier.binds & (program.lacks - frozenset(given)):
            continue
        is_example = not asked and earlier.acts and program.is_example
        program = earlier if is_example else _Block(f"{earlier.text}\n{program.text}")
    return program.text


@lru_cache(maxsize=64)
def names_of(prelude: str, modules: tuple[str, ...]) -> frozenset[str]:
    """What is defined once the prelude has run; `modules` are those that it imports whole."""
    public = {name for module in modules for name in vars(importlib.import_module(module))}
    return _Block(prelude).binds | public


@lru_cache(maxsize=64)
def names_in(tests: tuple[str, ...]) -> frozenset[str]:
    """Names that the tests use."""
    return frozenset(name for test in tests for name in _Block(test).loads)


def _block(opened: re.Match[str], text: str) -> tuple[str, str]:
    return opened[2].lower(), textwrap.dedent(text) if opened[1] else text


@dataclass(frozen=True)
class _Block:
    text: str

    @cached_property
    def tree(self) -> ast.Module | None:
        """None for what is no Python."""
        try:
            with warnings.catch_warnings(action="ignore"):
                return ast.parse(self.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    @property
    def is_broken(self) -> bool:
        """It may have been meant to define anything."""
        return self.tree is None and _BROKEN.search(self.text) is not None

    @cached_property
    def binds(self) -> frozenset[str]:
        """Names that it gives a value at its top level."""
        return frozenset(name for node in self._top_level() for name in _bound(node))

    @cached_property
    def loads(self) -> frozenset[str]:
        nodes = ast.walk(self.tree) if self.tree is not None else ()
        return frozenset(_name(node) for node in nodes if _is_load(node))

    @cached_property
    def lacks(self) -> frozenset[str]:
        """Names that it uses and that neither it nor Python defines anywhere."""
        nodes = ast.walk(self.tree) if self.tree is not None else ()
        return self.loads - {name for node in nodes for name in _bound(node)} - _BUILTIN

    @cached_property
    def acts(self) -> bool:
        """Whether it prints by itself, or calls a function of its own that may."""
        calls = [node.func for node in self._top_level() if isinstance(node, ast.Call)]
        return any(_name(function) in _PRINTING | self.binds for function in calls)

    @cached_property
    def is_example(self) -> bool:
        defines = any(isinstance(node, _DEFINITIONS) for node in self._top_level())
        nodes = ast.walk(self.tree) if self.tree is not None else ()
        return not defines and not any(_name(node) in _READING for node in nodes)

    def _top_level(self) -> Iterator[ast.AST]:
        """Every node outside of the bodies of functions and classes."""
        left: list[ast.AST] = list(self.tree.body) if self.tree is not None else []
        while left:
            node = left.pop()
            yield node
            if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
                left.extend(ast.iter_child_nodes(node))


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, (*_DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return [node.name] if node.name else []
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).split(".")[0]]
    return [node.arg] if isinstance(node, ast.arg) else []
