"""What a reference answer says about the tests of a program, in the formats of the data sets.

{"inputs": [...], "outputs": [...]}                    APPS, TACO: stdin and stdout
{"inputs": ..., "outputs": ..., "fn_name": "f"}        the same with calls of a function
{"public_test_cases": [...], "private_test_cases": [...], "fn_name": "f"}    LiveCodeBench
{"test_list": ["assert f(1) == 2"], "test_imports": ["import math"]}         MBPP
{"test": "def check(candidate): ...", "entry_point": "f", "prompt": "def f..."}    HumanEval
"""

import base64
import functools
import io
import json
import pickle
import zlib
from dataclasses import dataclass
from typing import Any

from grpo.verify.sandbox.calls import SAME

_LARGEST_PRIVATE = 512 << 20

# LiveCodeBench runs every program after star imports of these, in this order.
_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
_PRELUDE = "".join(
    [f"from {name} import *\n" for name in _MODULES]
    + [f"import {name}\n" for name in _MODULES]
    + ["sys.setrecursionlimit(50000)\n"]
)


@dataclass(frozen=True, slots=True)
class StreamTests:
    """Programs that read stdin and write stdout. cases: (input, expected output). `prelude` is run
    before the program, and its modules are imported once."""

    cases: tuple[tuple[str, str], ...]
    prelude: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallTests:
    """Programs whose functions are called. cases: one piece of Python for each test, run after
    `setup` apart from the program; `names` are the program's functions in it, () for all names
    that nothing else defines."""

    cases: tuple[str, ...]
    setup: str = ""
    names: tuple[str, ...] = ()
    prelude: str = ""
    modules: tuple[str, ...] = ()


@functools.lru_cache(maxsize=32)  # the siblings of one prompt share it
def read_tests(answer: str) -> StreamTests | CallTests:
    """Raises ValueError that says what is missing or malformed."""
    try:
        tests = json.loads(answer)
    except RecursionError:
        raise ValueError("the tests are nested too deep") from None
    if not isinstance(tests, dict):
        raise ValueError(f"the tests are no JSON object but {answer[:40]!r}")
    if "public_test_cases" in tests:
        return _live_code_bench(tests)
    if "inputs" in tests:
        return _apps(tests)
    if "test_list" in tests:
        imports = _texts(tests.get("test_imports", []), "test_imports")
        names = ()
        if "entry_point" in tests:
            names = (_identifier(tests["entry_point"], "entry_point"),)
        return CallTests(_some(_texts(tests["test_list"], "test_list")), "\n".join(imports), names)
    if "test" in tests:
        return _human_eval(tests)
    raise ValueError(
        "the tests have none of the keys public_test_cases, inputs, test_list and test, "
        f"but {', '.join(sorted(tests)) or 'no key'}"
    )


def _some(cases: tuple[Any, ...]) -> tuple[Any, ...]:
    if not cases:
        raise ValueError("there is not one test")
    return cases


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is no list of strings")
    return tuple(value)


def _human_eval(tests: dict[str, Any]) -> CallTests:
    entry, prompt = tests.get("entry_point"), tests.get("prompt", "")
    if not isinstance(tests["test"], str) or not isinstance(prompt, str):
        raise ValueError("test and prompt are no strings")
    entry = _identifier(entry, "entry_point")
    # The prompt is a function that does nothing, after the helpers that its tests may use.
    setup = f"{prompt}\n{tests['test']}"
    return CallTests((f"check({entry})",), setup, (entry,), prompt)


def _live_code_bench(tests: dict[str, Any]) -> StreamTests | CallTests:
    cases = _cases(tests, "public_test_cases") + _cases(tests, "private_test_cases")
    metadata = tests.get("metadata", {})
    if isinstance(metadata, str):
        metadata = json.loads(metadata)
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata is no object but {metadata!r}")
    name = tests.get("fn_name") or metadata.get("func_name")
    if name is None:
        if any(case.get("testtype") == "functional" for case in cases):
            raise ValueError("functional tests need fn_name")
        pairs = tuple((str(case["input"]), str(case["output"])) for case in cases)
        return StreamTests(_some(pairs), _PRELUDE, _MODULES)
    name = _identifier(name, "fn_name")
    texts = tuple(_json_call(name, str(case["input"]), str(case["output"])) for case in cases)
    return CallTests(_some(texts), "import json", (name,), _PRELUDE, _MODULES)


def _apps(tests: dict[str, Any]) -> StreamTests | CallTests:
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("inputs and outputs are no lists of one length")
    if tests.get("fn_name") is None:
        pairs = tuple((_lines(i), _lines(o)) for i, o in zip(inputs, outputs, strict=True))
        return StreamTests(_some(pairs))
    name = _identifier(tests["fn_name"], "fn_name")
    texts = []
    for arguments, expected in zip(inputs, outputs, strict=True):
        if isinstance(arguments, str):  # one argument a line
            texts.append(_json_call(name, arguments, str(expected)))
        else:
            # APPS puts what is returned into a list of one.
            bare = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
            texts.append(_call(name, repr(arguments), f"[{expected!r}, {bare!r}]"))
    return CallTests(_some(tuple(texts)), "import json", (name,), _PRELUDE, _MODULES)


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _identifier(name: Any, key: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{key} is {name!r}, expected the name of a function")
    return name


def _json_call(name: str, arguments: str, expected: str) -> str:
    """LiveCodeBench's form: JSON, one argument a line."""
    listed = f"[json.loads(line) for line in {arguments!r}.split('\\n') if line.strip()]"
    return _call(name, listed, f"[json.loads({expected!r})]")


def _call(name: str, arguments: str, accepted: str) -> str:
    """A test: the call must return one of those accepted, as `same_value` compares."""
    return (
        f"got = {name}(*{arguments})\n"
        f"assert any({SAME}(got, value) for value in {accepted}), f'returned {{got!r}}'\n"
    )


def _cases(tests: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list, its JSON, or as LiveCodeBench packs the private ones: base64 of zlib of a pickled
    JSON string. The pickle may hold that string and nothing else."""
    value = tests.get(key, [])
    if isinstance(value, str):
        value = json.loads(value if value.lstrip().startswith("[") else _unpack(value))
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list of test cases")
    for case in value:
        if not isinstance(case, dict) or not {"input", "output"} <= case.keys():
            raise ValueError(f"{key}: no object with input and output: {str(case)[:40]!r}")
    return value


class _StringUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise ValueError(f"private_test_cases hold a {module_name}.{global_name}, not a string")


def _unpack(packed: str) -> str:
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), _LARGEST_PRIVATE)
        text = _StringUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"private_test_cases cannot be unpacked: {error}") from None
    if not isinstance(text, str):
        raise ValueError(f"private_test_cases hold a {type(text).__name__}, not a string")
    return text
