"""`IpcSender` against vLLM's IPCWeightTransferEngine, over files in place of CUDA IPC."""

import multiprocessing
import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from vllm.distributed.weight_transfer import ipc_engine

from tests.contract import ipc_ranks
from tests.contract.cases import Case
from tests.contract.gpu import ContractError, Gpu, on
from tests.contract.ipc_ranks import Rank, meeting, rebuild, run_other
from tests.contract.vllms import over_rpc, receiver
from tests.contract.weights import check_equal
from tests.contract.wire import DEADLINE_S

_opened: Counter[bytes] = Counter()


def _open(*arguments: Any) -> torch.Tensor:
    """torch counts an export's readers down at each opening: the second is one too many."""
    counter = arguments[11]
    _opened[counter] += 1
    if _opened[counter] > 1:
        raise ContractError(f"an export was opened {_opened[counter]} times")
    return rebuild(*arguments)


def install() -> None:
    """Puts the stand-ins into vLLM and into our sender, in this process for good."""
    ipc_ranks.install()
    modules: list[Any] = [torch.multiprocessing.reductions, ipc_engine]
    for module in modules:
        module.rebuild_cuda_tensor = _open


class EngineWorker:
    """One of vLLM's workers, on the GPU of the learner rank of that number."""

    def __init__(self, case: Case, number: int):
        self.gpu, self._mutation = Gpu(number), case.mutation
        device = SimpleNamespace(type="cuda", index=self.gpu.index)
        tensor_parallel = case.tensor_parallel
        kind = ipc_engine.IPCWeightTransferEngine
        self.receiver = receiver(kind, tensor_parallel, number % tensor_parallel, device)
        info = meeting(case, 0).engine_info(1)
        arguments = over_rpc("init_weight_transfer_engine", init_info=info)
        self.receiver.init_transfer_engine(self.receiver.parse_init_info(arguments["init_info"]))

    def receive(self, info: dict[str, Any]) -> None:
        if self._mutation == "tells of another dtype":
            info = info | {"dtype_names": ["float16"] * len(info["names"])}
        arguments = over_rpc("update_weights", update_info=info)
        with on(self.gpu):
            self.receiver.update_weights(arguments["update_info"])


def run(case: Case) -> None:
    """Raises ContractError where the two sides do not fit."""
    workers = [EngineWorker(case, i) for i in range(case.engines * case.tensor_parallel)]

    def push(info: dict[str, Any]) -> None:
        for worker in workers:
            worker.receive(info)

    with ExitStack() as stack:
        store = tempfile.mkdtemp(dir=os.environ["CONTRACT_FOLDER"]) + "/store"
        others = [stack.enter_context(_Other(case, rank, store)) for rank in range(1, case.ranks)]
        first = stack.enter_context(Rank(case, 0, store, push))
        for update in range(case.updates):
            for worker in workers:
                worker.receiver.model.loaded = {}
                worker.receiver.start_weight_update()
            first.send(update)
            for other in others:
                other.has_sent()
            for worker in workers:
                worker.receiver.finish_weight_update()
                check_equal(
                    first.source.weights,
                    worker.receiver.model.loaded,
                    f"update {update}, GPU {worker.gpu.number}",
                )


class _Other:
    """A learner rank in a process of its own; a context manager."""

    def __init__(self, case: Case, rank: int, store: str):
        processes = multiprocessing.get_context("forkserver")
        self._said, end = processes.Pipe(duplex=False)
        self._process = processes.Process(
            target=run_other, args=(case, rank, store, end), daemon=True
        )

    def __enter__(self) -> "_Other":
        self._process.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()

    def has_sent(self) -> None:
        if not self._said.poll(DEADLINE_S):
            raise ContractError(f"a learner rank did not send in {DEADLINE_S:.0f} s")
        if words := self._said.recv():
            raise ContractError(words)
