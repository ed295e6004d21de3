"""The learner's end of each transport by name."""

from collections.abc import Callable
from typing import Any

from grpo.sync.transport import Meeting, Sender, WeightSource


def make_sender(
    source: WeightSource, meeting: Meeting, push: Callable[[dict[str, Any]], None]
) -> Sender:
    """`push` hands a chunk to the engines, for the transport whose learner drives (ipc).

    Each is imported only where it is used: the GPU transports need vLLM, which takes a CPU learner
    10 s to load.
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
