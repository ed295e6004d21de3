"""The process that holds both sides: runs the case that each line of its input names.

It answers with a line of JSON: `error`, null where the case holds, and `seconds`. By hand, here for
the cases whose names have "ipc" in them:

    VLLM_ALLOW_INSECURE_SERIALIZATION=1 python -m tests.contract.serve ipc
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from typing import TextIO

from tests.contract.cases import FAULTS, FITS, Case

CASES = {case.name: case for case in (*FITS, *(case for case, _ in FAULTS))}


def prepare() -> str:
    """Returns where vLLM's receivers come from."""
    # Other learner ranks are forked from a process without threads.
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["tests.contract.ipc_ranks"])
    from multiprocessing.forkserver import ensure_running

    ensure_running()
    from tests.contract import gpu, vllms

    where = vllms.choose(os.environ.pop("VLLM_SOURCES", ""))
    from tests.contract import ipc

    gpu.install()
    vllms.install()
    ipc.install()
    return where


def outcome(case: Case) -> str | None:
    """What is wrong, or None."""
    from tests.contract import ipc, nccl, order

    kinds = {"nccl": nccl.run, "ipc": ipc.run, "shared": order.run, "separate": order.run}
    try:
        kinds[case.kind](case)
    except Exception as error:  # the answer
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def serve(names: TextIO, answers: TextIO) -> None:
    print(json.dumps({"receivers": prepare()}), file=answers, flush=True)
    for name in names:
        started = time.monotonic()
        error = outcome(CASES[name.rstrip("\n")])
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"error": error, "seconds": seconds}), file=answers, flush=True)


def by_hand(words: list[str]) -> None:
    print(f"receivers: {prepare()}")
    for name, case in CASES.items():
        if all(word in name for word in words):
            started = time.monotonic()
            error = outcome(case)
            print(f"{time.monotonic() - started:6.2f} s  {name}: {error or 'equal'}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("CONTRACT_FOLDER")) as folder:
        os.environ["CONTRACT_FOLDER"] = folder
        if sys.argv[1:]:
            by_hand([word for word in sys.argv[1:] if word != "all"])
        else:
            answers = os.fdopen(os.dup(1), "w")  # for answers alone: libraries print, too
            os.dup2(2, 1)
            serve(sys.stdin, answers)
    sys.stdout.flush()
    os._exit(0)  # a failed case may have left threads that wait


if __name__ == "__main__":
    main()
