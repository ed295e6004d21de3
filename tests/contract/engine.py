"""vLLM's own sleep, wake, pause and weight update, from AsyncLLM down to the allocator.

Stood in for: the model, the scheduler (what the pause state lets through), the receiver, and the
mapping of memory, of which a GPU has little. What vLLM passes over with a warning is an error here.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import torch
from vllm import device_allocator
from vllm.device_allocator import AllocationData, cumem
from vllm.device_allocator.cumem import CuMemAllocator
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor
from vllm.v1.worker import gpu_worker

from grpo.rollout.worker import RolloutWorker
from tests.contract.gpu import ContractError, Gpu, here, on

# Without their types: some of their parts are stood in for.
_AnyWorker: Any = gpu_worker.Worker
_AnyExecutor: Any = Executor
_AnyCore: Any = EngineCore
_AnyLLM: Any = AsyncLLM
CHUNKS = 3  # of one weight update
_POOLS = {"weights": 10, "kv_cache": 55}  # GiB, by vLLM's tag
_ADDRESSES = {tag: i for i, tag in enumerate(_POOLS)}


class Memory:
    """The memory of one GPU, in GiB."""

    total = 80

    def __init__(self, number: int):
        self._number = number
        self.taken: dict[str, int] = {}

    def take(self, what: str, size: int) -> None:
        if what in self.taken:
            raise ContractError(f"{what} took its memory twice on GPU {self._number}")
        if sum(self.taken.values()) + size > self.total:
            others = ", ".join(f"{size} of {name}" for name, size in self.taken.items())
            raise ContractError(
                f"GPU {self._number} is full: no {size} GiB of {what} beside {others}"
            )
        self.taken[what] = size

    def give_back(self, what: str) -> None:
        if what not in self.taken:
            raise ContractError(f"{what} holds no memory on GPU {self._number}")
        del self.taken[what]


class _Receiver:
    """In place of a weight transfer engine: knows whether the weights are whole."""

    supports_draft_weight_update = False

    def __init__(self, memory: Memory):
        self._memory = memory
        self.whole = True  # as loaded from disk
        self._chunks: list[Any] = []

    def parse_init_info(self, info: Any) -> Any:
        return info

    def init_transfer_engine(self, info: Any) -> None: ...

    def reset_weight_update_target(self) -> None: ...

    def start_weight_update(self) -> None:
        self._chunks = []

    def update_weights(self, info: dict[str, Any]) -> None:
        if "weights" not in self._memory.taken:
            raise ContractError("weights were written while they sleep")
        self._chunks.append(info["chunk"])

    def finish_weight_update(self) -> None:
        self.whole = self._chunks in (["all"], [*range(CHUNKS)])


class _Worker(_AnyWorker):
    def __init__(self, gpu: Gpu, memory: Memory):
        self.gpu, self.memory = gpu, memory
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enable_nccl_comm_suspend=False)
        )
        self.model_config = SimpleNamespace(sleep_preserve_parameter_names=None)
        self.model_runner = SimpleNamespace(
            model=torch.nn.BatchNorm1d(4),  # has buffers
            get_draft_model=lambda: None,
            reset_lora_state=lambda: None,
        )
        self.weight_transfer_engine = _Receiver(memory)
        self._weight_update_active = self._weight_update_is_draft = False
        self._sleep_mode_backend = CuMemBackend()
        self._sleep_saved_buffers, self._sleep_saved_draft_buffers = {}, {}
        self._sleep_saved_parameters = {}
        self.allocator = CuMemAllocator()
        _workers[gpu.index] = self
        for tag, address in _ADDRESSES.items():
            handle = (gpu.index, _POOLS[tag], address, 0)
            cumem.create_and_map(handle)
            self.allocator.pointer_to_data[address] = AllocationData(handle, tag)

    @property
    def updating(self) -> bool:
        return self._weight_update_active


_workers: dict[int, _Worker] = {}


def _map(handle: tuple[int, int, int, Any]) -> None:
    device, size, address, _ = handle
    _workers[device].memory.take([*_ADDRESSES][address], size)


def _unmap(handle: tuple[int, int, int, Any]) -> None:
    device, _, address, _ = handle
    tag = [*_ADDRESSES][address]
    _workers[device].memory.give_back(tag)
    if tag == "weights":
        _workers[device].weight_transfer_engine.whole = False


class _Executor(_AnyExecutor):
    def __init__(self, worker: _Worker):
        self.sleeping_tags, self.worker = set(), worker

    def _init_executor(self) -> None: ...

    def check_health(self) -> None: ...

    def collective_rpc(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, **more: Any
    ) -> Any:
        with on(self.worker.gpu):
            return [_method(self.worker, method)(*args, **(kwargs or {}))]


def _method(of: Any, name: str) -> Any:
    """The method that vLLM looks up by its name."""
    return getattr(of, name)


class _Scheduler:
    def __init__(self) -> None:
        self.pause_state = PauseState.UNPAUSED

    def set_pause_state(self, state: PauseState) -> None:
        self.pause_state = state

    def finish_requests(self, requests: Any, status: Any) -> None: ...

    def get_kv_connector(self) -> None: ...


class _Core(_AnyCore):
    def __init__(self, worker: _Worker):
        self.scheduler, self.model_executor = _Scheduler(), _Executor(worker)

    def _reset_caches(self, **which: Any) -> None: ...


class _Client:
    """AsyncLLM's client of the engine core, without a process in between."""

    def __init__(self, core: _Core):
        self._core = core

    async def sleep_async(self, level: int, mode: Any) -> None:
        self._core.sleep(level, mode)

    async def wake_up_async(self, tags: list[str] | None) -> bool:
        return self._core.wake_up(tags)

    async def pause_scheduler_async(self, mode: Any, clear_cache: bool) -> None:
        self._core.pause_scheduler(mode, clear_cache)

    pause_generation_async = pause_scheduler_async  # its name from vLLM 0.33 on

    async def resume_scheduler_async(self) -> None:
        self._core.resume_scheduler()

    async def set_weight_version_async(self, version: str) -> None:
        self._core.set_weight_version(version)

    async def collective_rpc_async(self, *call: Any) -> Any:
        return self._core.collective_rpc(*call)


async def _nothing() -> None: ...


class Engine(_AnyLLM):
    """One engine of one worker; on the GPU from the moment it is made."""

    def __init__(self, gpu: Gpu, memory: Memory):
        with on(gpu):
            self._worker = _Worker(gpu, memory)
        self._core = _Core(self._worker)
        self.engine_core = _Client(self._core)
        self.logger_manager = None
        self.renderer = SimpleNamespace(clear_mm_cache_async=_nothing)

    def shutdown(self, timeout: float | None = None) -> None: ...

    async def generate(self, *request: Any, **more: Any) -> AsyncIterator[Any]:
        while self._core.is_scheduler_paused():  # vLLM queues it
            await asyncio.sleep(0.001)
        if asleep := self._core.model_executor.sleeping_tags:
            raise ContractError(f"sampled while {' and '.join(sorted(asleep))} sleeps")
        if self._worker.updating:
            raise ContractError("sampled during a weight update")
        if not self._worker.weight_transfer_engine.whole:
            raise ContractError("sampled with weights that are not whole")
        answer = SimpleNamespace(
            token_ids=[], logprobs=None, weight_versions=None, finish_reason="stop"
        )
        yield SimpleNamespace(outputs=[answer])


class Rollout(RolloutWorker):
    """Ours, with a tokenizer of no words."""

    def __init__(self, gpu: Gpu, memory: Memory):
        self._gpu, self._memory = gpu, memory
        self._tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "")
        self._stop_token_ids = []
        self._open, self._version = asyncio.Event(), 0
        self._groups, self._running = set(), {}
        self.started = False

    async def start(self) -> None:
        self._engine = Engine(self._gpu, self._memory)
        self.started = True
        self._open.set()


class _Warned(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ContractError(f"vLLM does nothing and warns: {record.getMessage()}")


def install() -> None:
    """Puts the stand-ins into vLLM, in this process for good."""
    gc.freeze()  # vLLM collects garbage in each sleep and wake, and modules are none
    cumem.create_and_map, cumem.unmap_and_release = _map, _unmap
    device_allocator.get_mem_allocator_instance = lambda: _workers[here().index].allocator
    worker, accelerator = (cast(Any, module) for module in (gpu_worker, torch.accelerator))
    worker.set_current_vllm_config = lambda config: nullcontext()
    accelerator.get_memory_info = lambda: _free(_workers[here().index].memory)
    for module in ("vllm.v1.executor.abstract", "vllm.device_allocator.cumem"):
        logging.getLogger(module).setLevel(logging.WARNING)
        logging.getLogger(module).addHandler(_Warned(logging.WARNING))


def _free(memory: Memory) -> tuple[int, int]:
    return memory.total - sum(memory.taken.values()), memory.total


install()  # whoever imports this wants it
