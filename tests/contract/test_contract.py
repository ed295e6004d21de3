"""Our senders and the order of an update against the code of vLLM that receives, without a GPU.

What stands in for a GPU would break torch for every other test, so all of it lives in a process of
its own (`serve.py`), which is asked for one case after the other. VLLM_SOURCES=FOLDER/vllm asks the
vLLM in that folder as well as the installed one; docs/gpu.md says how to come by one.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from tests.contract.cases import FAULTS, FITS, Case

ROOT = Path(__file__).parents[2]
START_S = 300.0  # vLLM's imports, on a machine that does much else
# A case ends by itself within 20 s, even where a side waits in vain; what is first to need them
# imports more of vLLM.
ANSWER_S = 120.0
SOURCES = os.environ.get("VLLM_SOURCES", "")


class Server:
    def __init__(self, sources: str, log: Path):
        self._log = log
        environment = {name: value for name, value in os.environ.items() if name[:5] != "VLLM_"}
        environment |= {
            "VLLM_SOURCES": sources,
            "CONTRACT_FOLDER": str(log.parent),
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.contract.serve"]
        with log.open("w") as errors:
            self._process = Popen(
                command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        self._reader = ThreadPoolExecutor(1)
        self.receivers = self._answer(START_S)["receivers"]

    def ask(self, case: Case) -> str | None:
        """What is wrong, None if nothing is."""
        assert self._process.stdin is not None
        self._process.stdin.write(case.name + "\n")
        self._process.stdin.flush()
        return self._answer(ANSWER_S)["error"]

    def _answer(self, wait_s: float) -> Any:
        assert self._process.stdout is not None
        try:
            line = self._reader.submit(self._process.stdout.readline).result(wait_s)
        except TimeoutError:
            self._process.kill()
            line = ""
        assert line, f"no answer. The end of its log:\n{self._log.read_text()[-3000:]}"
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.shutdown()


@pytest.fixture(scope="module", params=["installed", "VLLM_SOURCES"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    if request.param == "VLLM_SOURCES" and not SOURCES:
        pytest.skip("VLLM_SOURCES names no other vLLM")
    sources = SOURCES if request.param == "VLLM_SOURCES" else ""
    made = Server(sources, tmp_path_factory.mktemp("contract") / "log")
    yield made
    made.end()


def test_the_receivers_are_those_of_the_vllm_that_is_asked_for(server: Server):
    folder = Path(server.receivers).parents[1]
    assert folder.name == "vllm"
    installed = folder.parent == Path(pytest.__file__).parents[1]
    assert installed or folder == Path(SOURCES).resolve()


@pytest.mark.parametrize("case", FITS, ids=[case.name.replace(" ", "_") for case in FITS])
def test_every_byte_arrives_and_no_rule_of_vllm_is_broken(case: Case, server: Server):
    assert server.ask(case) is None


@pytest.mark.parametrize(
    ("case", "words"), FAULTS, ids=[case.name.replace(" ", "_") for case, _ in FAULTS]
)
def test_a_fault_is_found_and_the_failure_says_what_differs(case: Case, words: str, server: Server):
    error = server.ask(case)
    assert error is not None and re.search(words, error), error
