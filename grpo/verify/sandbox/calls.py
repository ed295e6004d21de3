"""Function calls from one sandbox into another, as plain data.

    judge (the data set's tests)  -- name, arguments -->  server (the program under test)
    judge                         <-- value or error --   server

The program never meets the tests: not their text, not what they expect, not the objects that
compare. What it returns arrives as numbers, strings and containers of Python's own types, so it
brings no `__eq__` of its own. The runs are started with the text of this file: only the standard
library.
"""

import ast
import builtins
import collections
import functools
import itertools
import json
import math
import numbers
import operator
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

PASSED = 42  # the judge's exit code; leaving early, by whatever way, is another
# By this name a test calls `same_value(returned, expected)`.
SAME = "__same_value__"

_FRAME = struct.Struct("<I")
_LARGEST_FRAME = 32 << 20
_LONGEST_ITERATOR = 1_000_000
_JSON_BITS = 1000  # of integers that JSON takes as digits
_CONTAINERS: dict[str, type] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_ITERABLES = (Iterator, type({}.keys()), type({}.values()), type({}.items()))


def serve(channel: int, prelude: str, program: str) -> None:
    """Runs prelude and program, then answers calls to its functions until the judge hangs up."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(prelude, "solution.py", "exec"), module.__dict__)
    given = dict(module.__dict__)
    exec(compile(program, "solution.py", "exec"), module.__dict__)
    made = {n: v for n, v in module.__dict__.items() if n not in given or given[n] is not v}
    while True:
        try:
            name, arguments, keywords = from_plain(_receive(channel))
        except EOFError:
            return
        try:
            reply = ["value", to_plain(_function(made, name)(*arguments, **keywords))]
        except BaseException as error:  # whatever it raises is the judge's to see
            reply = ["error", type(error).__name__, str(error)[:200]]
        _send(channel, reply)


def _function(made: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function that the program has made itself, or as LeetCode has it a method of its class
    Solution."""
    if name in made:
        return made[name]
    if "Solution" in made:
        return operator.attrgetter(name)(made["Solution"]())
    raise NameError(f"the program defines no {name!r}")


def judge(
    channel: int, setup: str, test: str, names: tuple[str, ...], tolerance: float = 0.0
) -> None:
    """Runs the test, in which `names` are functions of the program, and exits with PASSED.

    Without names, those that neither the setup nor Python defines are the program's; where there is
    none either, the function that the test calls first: the program may define a `sum`.
    """
    same = functools.partial(same_value, tolerance=tolerance)
    namespace: dict[str, Any] = {"__name__": "tests", SAME: same}
    exec(compile(setup, "setup.py", "exec"), namespace)
    for name in names or _names_of_program(test, namespace):
        namespace[name] = _Remote(channel, name)
    exec(compile(test, "test.py", "exec"), namespace)
    os._exit(PASSED)


def _names_of_program(test: str, namespace: dict[str, Any]) -> list[str]:
    """Modules that the test uses without importing them are imported into its namespace."""
    nodes = list(ast.walk(ast.parse(test)))
    called = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    named = [node for node in nodes if isinstance(node, ast.Name)]
    stored = {node.id for node in named if not isinstance(node.ctx, ast.Load)}
    unknown = {node.id for node in named} - stored - namespace.keys() - vars(builtins).keys()
    modules = (unknown - set(called)) & sys.stdlib_module_names
    namespace.update({name: __import__(name) for name in modules})
    return sorted(unknown - modules) or called[:1]


def same_value(returned: Any, expected: Any, tolerance: float) -> bool:
    """Equal, or apart by the tolerance where floats are expected. What is expected comes from JSON,
    which knows no tuples: those that are returned count as lists, at any depth."""
    if returned == expected:
        return True
    if isinstance(expected, list):
        return (
            isinstance(returned, list | tuple)
            and len(returned) == len(expected)
            and all(map(same_value, returned, expected, itertools.repeat(tolerance)))
        )
    if isinstance(expected, dict):
        return (
            isinstance(returned, dict)
            and returned.keys() == expected.keys()
            and all(same_value(returned[key], expected[key], tolerance) for key in expected)
        )
    if type(expected) is not float or type(returned) not in (int, float):
        return False
    finite = math.isfinite(expected) and abs(returned) <= sys.float_info.max
    return finite and is_close(returned, expected, tolerance)


def is_close(ours: Any, theirs: Any, tolerance: Any) -> bool:
    """Whether two numbers differ by at most `tolerance`, or beyond 1000 in proportion to them by a
    thousandth of it (1e-6: absolute, then 1e-9 relative, as much as sums of doubles lose); by half
    of `theirs` at most, so that 0 is never 1e-9. Ours is compared and not computed with: it may be
    nan or have a million digits."""
    allowed = tolerance * max(1, abs(theirs) / 1000)
    if theirs:
        allowed = min(allowed, abs(theirs) / 2)
    return allowed > 0 and theirs - allowed <= ours <= theirs + allowed


class _Remote:
    """A function of the program, as the tests see it."""

    def __init__(self, channel: int, name: str):
        self._channel = channel
        self._name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        call = to_plain((self._name, arguments, keywords))
        try:
            _send(self._channel, call)
            kind, *rest = _receive(self._channel)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise EOFError("the program ended before it answered") from None
        if kind == "value":
            return from_plain(rest[0])
        # A class of that name where it is an error: SystemExit, for one, would end the judge.
        known = vars(builtins).get(str(rest[0]))
        if not (isinstance(known, type) and issubclass(known, Exception)):
            known = RuntimeError
        raise known(str(rest[1]))


class _Object:
    """What has no plain form: true or false, and equal to nothing but itself."""

    def __init__(self, kind: str, truth: bool):
        self._kind = kind
        self._truth = truth

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<a {self._kind}>"


def to_plain(value: Any) -> Any:
    """JSON that from_plain reads: scalars as they are, the rest as [type, contents].

    Subclasses become what they derive from. Of any other object only its truth is passed.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | float):
        return str(value) if isinstance(value, str) else float(value)
    if isinstance(value, numbers.Number):
        return _plain_number(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, dict):
        return ["dict", [[to_plain(key), to_plain(item)] for key, item in value.items()]]
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return [name, [to_plain(item) for item in value]]
    if isinstance(value, _ITERABLES):
        items = itertools.islice(value, _LONGEST_ITERATOR)
        return ["iterator", [to_plain(item) for item in items]]
    return _plain_object(value)


def _plain_number(value: Any) -> Any:
    if isinstance(value, numbers.Integral):  # numpy's, too
        number = int(value)
        return number if number.bit_length() <= _JSON_BITS else ["int", hex(number)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    return float(value) if isinstance(value, numbers.Real) else _plain_object(value)


def _plain_object(value: Any) -> list[Any]:
    return ["object", type(value).__name__, bool(value)]


def from_plain(node: Any) -> Any:
    """The value that to_plain was given. Raises ValueError, TypeError or RecursionError for what
    to_plain never writes."""
    if node is None or isinstance(node, bool | int | float | str):
        return node
    kind, *contents = node
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([from_plain(item) for item in contents[0]])
    if kind == "iterator":
        return iter([from_plain(item) for item in contents[0]])
    if kind == "dict":
        return {from_plain(key): from_plain(item) for key, item in contents[0]}
    if kind == "int":
        return int(contents[0], 16)
    if kind == "bytes":
        return bytes.fromhex(contents[0])
    if kind == "complex":
        return complex(*contents)
    if kind == "range":
        return range(*contents)
    if kind == "object":
        return _Object(str(contents[0]), contents[1] is True)
    raise ValueError(f"unknown kind {kind!r}")


def _send(channel: int, message: Any) -> None:
    data = json.dumps(message).encode("ascii")
    if len(data) > _LARGEST_FRAME:
        data = json.dumps(["error", "OverflowError", f"a value of {len(data):,} bytes"]).encode()
    frame = memoryview(_FRAME.pack(len(data)) + data)
    while frame:
        frame = frame[os.write(channel, frame) :]


def _receive(channel: int) -> Any:
    (size,) = _FRAME.unpack(_exactly(channel, _FRAME.size))
    if size > _LARGEST_FRAME:
        raise ValueError(f"a message of {size:,} bytes; at most {_LARGEST_FRAME:,} are taken")
    return json.loads(_exactly(channel, size))


def _exactly(channel: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(channel, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the other side has hung up")
        parts += part
    return bytes(parts)
