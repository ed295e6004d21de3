"""What is left of the sixty lines that Ray has for a machine whose memory is full."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError

from grpo.errors import WorkerFault
from grpo.fleet.cluster import Call, Worker
from grpo.fleet.memory_words import out_of_memory

# As Ray 2.59 wrote it, shortened.
RAYS = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: \
192.0.2.2, ID: 06def) was 21.84GB used / 23.54GB limit (0.927558)
OOM kill reason: Memory usage 24046571520B exceeded threshold of 24012677120B
- bytes spillable: 0
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
10317\t7.08\tray::_Host.call
11731\t4.95\tray::_Host.call
10488\t2.81\tVLLM::EngineCore
9989\t0.43\t/usr/bin/python a.py --with many words of which nobody needs as much as this is
2839\t0.29\t.venv/bin/python other.py
Refer to the documentation on how to address the out of memory issue"""


def test_how_full_the_machine_was_and_of_what_is_one_sentence_and_what_helps_another():
    words = out_of_memory("learner-0", RAYS)
    assert words.startswith(
        "the machine's memory was full (21.84 of 23.54 GB), and Ray killed it; the largest "
        "processes: ray::_Host.call 7.08 GB, ray::_Host.call 4.95 GB, VLLM::EngineCore 2.81 GB, "
        "/usr/bin/python a.py --with many words of which nobody needs 0.43 GB. See what else"
    )
    assert "\n" not in words and "learner.micro_batch_tokens" in words


def test_words_that_are_not_known_are_left_out():
    assert out_of_memory("rollout-1", "something new").startswith(
        "the machine's memory was full, and Ray killed it. See"
    )


def test_what_helps_is_for_the_worker_that_was_killed():
    words = out_of_memory("rollout-1", RAYS)
    assert "kv_cache_memory_bytes" in words and "learner" not in words


def test_a_worker_that_was_killed_for_its_memory_is_a_fault_with_these_words():
    future: Future[Any] = Future()
    future.set_exception(OutOfMemoryError(RAYS))
    call = Call(Worker("learner-0", None, Path("learner-0.log"), {}), "step", future)
    with pytest.raises(WorkerFault, match="learner-0 was killed during step: the machine's memory"):
        call.result()
