"""A stand-in for a GPU: work is queued on streams and done as late as the rules of CUDA allow.

Work is done when somebody waits for its stream, and then only what the stream needs. Who reads or
reuses memory without having waited finds what lay there before.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


class ContractError(AssertionError):
    """The two sides differ, or a rule of the GPU or of vLLM is broken; says in what."""


class Work:
    def __init__(self, run: Callable[[], Any], needs: list["Work"]):
        self._run: Callable[[], Any] | None = run
        self._needs = needs

    def finish(self) -> None:
        needs, self._needs = self._needs, []
        for need in needs:
            need.finish()
        run, self._run = self._run, None
        if run is not None:
            run()


class Stream:
    """What our code and vLLM's use of `torch.cuda.Stream`."""

    cuda_stream = 0

    def __init__(self, device: Any = None, **ignored: Any):
        self._last: list[Work] = []
        here().streams.append(self)

    def add(self, run: Callable[[], Any], *needs: Work) -> Work:
        work = Work(run, [*self._last, *needs])
        self._last = [work]
        return work

    def synchronize(self) -> None:
        while self._last:
            self._last.pop().finish()

    def wait_event(self, event: "Event") -> None:
        self._last = [*self._last, *event.after]

    def wait_stream(self, other: "Stream") -> None:
        self._last = [*self._last, *other._last]


class Event:
    def __init__(self, *ignored: Any, **also: Any):
        self.after: list[Work] = []

    def record(self, stream: Stream | None = None) -> None:
        self.after = list((stream or here().current)._last)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or here().current).wait_event(self)

    def synchronize(self) -> None:
        for work in self.after:
            work.finish()


class Gpu:
    """One process's view of a GPU. `number`: which one, for processes that share it."""

    _indices = itertools.count()
    known: dict[int, "Gpu"] = {}  # noqa: RUF012

    def __init__(self, number: int = 0):
        self.number, self.index = number, next(self._indices)
        self.known[self.index] = self
        self.streams: list[Stream] = []
        with on(self):
            self.current = self.default = Stream()

    def synchronize(self) -> None:
        for stream in self.streams:
            stream.synchronize()


_thread = threading.local()


def here() -> Gpu:
    """The GPU of the process that this thread stands for."""
    return _thread.gpu


@contextmanager
def on(gpu: Gpu) -> Iterator[None]:
    before = vars(_thread).get("gpu")
    _thread.gpu = gpu
    try:
        yield
    finally:
        _thread.gpu = before


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    gpu = here()
    before, gpu.current = gpu.current, stream
    try:
        yield
    finally:
        gpu.current = before


def _set_stream(stream: Stream) -> None:
    here().current = stream


def install() -> None:
    """Puts the stand-ins into torch, in this process for good."""
    cuda: Any = torch.cuda
    cuda.Stream, cuda.stream, cuda.set_stream = Stream, _stream, _set_stream
    cuda.current_stream = lambda device=None: here().current
    cuda.current_device = lambda: here().index
    cuda.synchronize = lambda device=None: here().synchronize()
    cuda.ipc_collect = cuda.empty_cache = lambda: None
    cuda.get_device_properties = lambda device=None: SimpleNamespace(
        uuid=f"GPU-{(here() if device is None else Gpu.known[device]).number}"
    )
    accelerator: Any = torch.accelerator
    accelerator.current_device_index = lambda: here().index
    accelerator.current_stream = lambda device=None: here().current
    accelerator.synchronize = lambda device=None: here().synchronize()
    accelerator.empty_cache = lambda: None
    the_rest: Any = torch
    the_rest.Event = Event
    the_rest.Tensor.record_stream = lambda self, stream: None
