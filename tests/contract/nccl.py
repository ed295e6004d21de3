"""`NcclSender` against vLLM's NCCLWeightTransferEngine, over a stand-in for NCCL."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from grpo.fleet.cluster import hold_port
from grpo.sync.buckets import (
    Bucket,
    WeightMeta,
    largest_bytes,
    plan_packed,
    total_bytes,
)
from grpo.sync.nccl import NcclSender
from grpo.sync.transport import Meeting, learner_members
from tests.contract.cases import Case
from tests.contract.gpu import ContractError, Gpu, on
from tests.contract.vllms import over_rpc, receiver
from tests.contract.weights import Source, check_equal, parameters
from tests.contract.wire import DEADLINE_S, Wire, together


class HostNcclSender(NcclSender):
    """Its buffers are in host memory; the rest is what runs on GPUs."""

    def _new_buffer(self) -> torch.Tensor:
        self._buffers.append(torch.empty(largest_bytes(self._chunks), dtype=torch.uint8))
        return self._buffers[-1]

    def send(self) -> None:
        """When it returns, its memory is somebody else's."""
        self._buffers: list[torch.Tensor] = []
        self._send()
        for buffer in self._buffers:
            buffer.fill_(0xEE)

    def _send(self) -> None:
        super().send()


class Learner:
    """One rank: its sender, what that reads from, and the GPU of its process."""

    def __init__(self, case: Case, meeting: Meeting, rank: int):
        self.gpu = Gpu()
        self.source = Source(parameters(case.parameters, case.dtype), case.bucket_bytes)
        kind = SENDERS.get(case.mutation, HostNcclSender)
        self.sender = kind(self.source, replace(meeting, rank=rank))


class EngineWorker:
    """One of vLLM's workers, and the GPU of its process."""

    def __init__(self, tensor_parallel: int, rank: int):
        self.gpu = Gpu()
        with on(self.gpu):
            self.receiver = receiver(NCCLWeightTransferEngine, tensor_parallel, rank)

    def join(self, info: dict[str, Any]) -> None:
        arguments = over_rpc("init_weight_transfer_engine", init_info=info)
        self.receiver.init_transfer_engine(self.receiver.parse_init_info(arguments["init_info"]))

    def receive(self, info: dict[str, Any]) -> None:
        self.receiver.start_weight_update()
        self.receiver.update_weights(over_rpc("update_weights", update_info=info)["update_info"])
        self.receiver.finish_weight_update()
        group = self.receiver.model_update_group
        group.wire.end(group.rank, group.count)


class Group:
    """Learner ranks and engines that have met."""

    def __init__(self, case: Case):
        self._case = case
        first = learner_members("nccl", case.ranks)
        world_size = first + case.engines * case.tensor_parallel
        self._held = hold_port()
        port = self._held.getsockname()[1]
        self._wire = Wire(port, world_size)
        meeting = Meeting("nccl", "127.0.0.1", port, 0, world_size, case.bucket_bytes, DEADLINE_S)
        self.learners = [Learner(case, meeting, rank) for rank in range(case.ranks)]
        self.workers = [
            [EngineWorker(case.tensor_parallel, rank) for rank in range(case.tensor_parallel)]
            for _ in range(case.engines)
        ]
        offset = OFFSETS.get(case.mutation, 0)
        opens = [(each.gpu, each.sender.open) for each in self.learners]
        joins = [
            (worker.gpu, partial(worker.join, meeting.engine_info(rank)))
            for i, engine in enumerate(self.workers)
            for rank in [first + i * case.tensor_parallel + offset]
            for worker in engine
        ]
        together([*opens, *joins], self._wire)
        if any(each.gpu.current is not each.gpu.default for each in self.learners):
            raise ContractError("a learner rank was left on another stream")

    def update(self, number: int) -> None:
        """One weight update, and whether every worker holds every byte of it."""
        self._wire.begin()
        metas = self.learners[0].source.metas
        for learner in self.learners:
            learner.source.take(number)
        weights = self.learners[0].source.weights
        workers = [each for engine in self.workers for each in engine]
        for worker in workers:
            worker.receiver.model.loaded = {}
        info = TOLD.get(self._case.mutation, lambda info: info)(
            self.learners[0].sender.update_info()
        )
        sends = [(each.gpu, partial(self._send, each)) for each in self.learners]
        together(
            [*sends, *((each.gpu, partial(each.receive, info)) for each in workers)], self._wire
        )
        for i, engine in enumerate(self.workers):
            for rank, worker in enumerate(engine):
                where = f"update {number}, engine {i}, rank {rank}"
                check_equal(weights, worker.receiver.model.loaded, where)
        self._check_sizes(metas)

    def _send(self, learner: Learner) -> None:
        learner.sender.send()
        learner.gpu.synchronize()
        group = learner.sender._group
        if group is not None:
            group.wire.end(group.rank, group.count)

    def _check_sizes(self, metas: list[WeightMeta]) -> None:
        """Both sides agree on every chunk, or the wire had failed; and none is too large."""
        most = max(self._case.bucket_bytes, *(meta.num_bytes for meta in metas))
        if max(self._wire.sizes) > most:
            raise ContractError(f"a chunk of {max(self._wire.sizes)} bytes, {most} are allowed")
        if sum(self._wire.sizes) != total_bytes(metas):
            raise ContractError(f"{sum(self._wire.sizes)} bytes were sent of {total_bytes(metas)}")

    def close(self) -> None:
        for learner in self.learners:
            learner.sender.close()
        for worker in (worker for engine in self.workers for worker in engine):
            worker.receiver.shutdown()


def run(case: Case) -> None:
    """Raises ContractError where the two sides do not fit."""
    group = Group(case)
    for update in range(case.updates):
        group.update(update)
    group.close()


# --- senders and engines with one fault each ---


class _Hasty(HostNcclSender):
    waits_for_buffers = waits_at_the_end = True

    def _send(self) -> None:
        if self._group is None:
            return super()._send()
        buffers = [self._new_buffer(), self._new_buffer()]
        for k, chunk in enumerate(self._chunks):
            stream = self._streams[k % 2]
            if self.waits_for_buffers:
                stream.synchronize()
            self._send_chunk(chunk, buffers[k % 2][: total_bytes(chunk)], stream)
        if self.waits_at_the_end:
            for stream in self._streams:
                stream.synchronize()


class _DoesNotWait(_Hasty):
    waits_for_buffers = False


class _DoesNotWaitAtTheEnd(_Hasty):
    waits_at_the_end = False


class _OtherChunks(HostNcclSender):
    def _cut(self) -> list[Bucket]:
        raise NotImplementedError

    def open(self) -> None:
        super().open()
        self._chunks = self._cut()


class _TwiceThePackedSize(_OtherChunks):
    def _cut(self) -> list[Bucket]:
        return plan_packed(self._metas, self._meeting.packed_bytes * 2)


class _HalfThePackedSize(_OtherChunks):
    def _cut(self) -> list[Bucket]:
        return plan_packed(self._metas, self._meeting.packed_bytes // 2)


class _LeavesATensorOut(_OtherChunks):
    def _cut(self) -> list[Bucket]:
        several = next(chunk for chunk in self._chunks if len(chunk) > 1)
        return [chunk[1:] if chunk is several else chunk for chunk in self._chunks]


class _LeavesTheLastChunkOut(_OtherChunks):
    def _cut(self) -> list[Bucket]:
        return self._chunks[:-1]


def _without_one(info: dict[str, Any]) -> dict[str, Any]:
    """One in the middle and its chunk are not told of."""
    return {key: [*values[:3], *values[4:]] for key, values in info.items()}


def _without_the_last(info: dict[str, Any]) -> dict[str, Any]:
    return {key: values[:-1] for key, values in info.items()}


def _in_another_order(info: dict[str, Any]) -> dict[str, Any]:
    """Names of two parameters of one size are exchanged."""
    names = list(info["names"])
    sizes = [str(shape) for shape in info["shapes"]]
    second = sizes.index(sizes[1], 2)
    names[1], names[second] = names[second], names[1]
    return info | {"names": names}


def _in_another_dtype(info: dict[str, Any]) -> dict[str, Any]:
    return info | {"dtype_names": ["float16", *info["dtype_names"][1:]]}


SENDERS: dict[str, type[HostNcclSender]] = {
    "reuses a buffer that has not left": _DoesNotWait,
    "returns before the last chunk has left": _DoesNotWaitAtTheEnd,
    "cuts chunks of twice the size": _TwiceThePackedSize,
    "cuts chunks of half the size": _HalfThePackedSize,
    "does not send a tensor": _LeavesATensorOut,
    "does not send the last chunk": _LeavesTheLastChunkOut,
}
OFFSETS = {"ranks one too high": 1, "ranks one too low": -1}
TOLD = {
    "does not tell of a tensor": _without_one,
    "does not tell of the last tensor": _without_the_last,
    "tells of two tensors in exchange": _in_another_order,
    "tells of another dtype": _in_another_dtype,
}
