"""The learner's end of each transport by name."""

from collections.abc import Callable
from typing import Any

from grpo.sync.transport import Meeting, Sender, WeightSource


def make_sender(
    source: WeightSource, meeting: Meeting, push: Callable[[dict[str, Any]], None]
) -> Sender:
    """`push` hands a chunk to the engines; only ipc, where the learner drives, uses it.

    Each transport is imported only when used: those for GPUs need vLLM, which takes a learner on
    CPU 10 s to import.
    """
    if meeting.transport == "shm":
        from grpo.sync.shm import ShmSender

        return ShmSender(source, meeting)
    if meeting.transport == "gloo":
        from grpo.sync.gloo import GlooSender

        return GlooSender(source, meeting)
    if meeting.transport == "nccl":
        from grpo.sync.nccl import NcclSender

        return NcclSender(source, meeting)
    from grpo.sync.ipc import IpcSender

    return IpcSender(source, meeting, push)
