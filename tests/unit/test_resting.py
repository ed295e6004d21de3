"""States that rest in host memory: what DeepSpeed is asked, where none of them is on the device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.learner.resting import Resting


class Engine:
    """ZeRO-3 with one master and one moment on the CPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.master, self.moment = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
        adam = SimpleNamespace(state={"p": {"exp_avg": self.moment, "step": 1}})
        self.optimizer = SimpleNamespace(fp32_partitioned_groups_flat=[self.master], optimizer=adam)

    def offload_states(self, include: Any) -> None:
        self.calls.append("offload")

    def reload_states(self) -> None:
        self.calls.append("reload")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gradients_come_back_though_every_state_was_in_host_memory_already(device: str):
    """As with learner.offload_optimizer; `meta` stands for a GPU on which none of them is."""
    engine = Engine()
    resting = Resting(engine, torch.device(device))
    for call in (resting.reload, resting.offload, resting.offload, resting.reload, resting.reload):
        call()
    assert engine.calls == ["offload", "reload"]
    assert engine.master.tolist() == [1.0, 2.0] and engine.moment.tolist() == [3.0]


def test_what_rests_is_a_copy_that_later_writes_to_the_device_do_not_touch():
    engine = Engine()
    resting = Resting(engine, torch.device("cpu"))
    for value in (5.0, 7.0):
        resting.offload()
        resting.reload()
        engine.master.fill_(value)
        resting.offload()
        assert engine.master.tolist() == [value, value]
        resting.reload()
