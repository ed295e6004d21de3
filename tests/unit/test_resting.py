"""States that rest in host memory: what DeepSpeed is asked, and views that stay views."""

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
        self.optimizer = SimpleNamespace(
            fp32_partitioned_groups_flat=[self.master],
            optimizer=adam,
            empty_partition_cache=self.empty_partition_cache,
        )

    def offload_states(self, include: Any) -> None:
        self.calls.append("offload")

    def empty_partition_cache(self) -> None:
        self.calls.append("release")

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


def test_weights_move_with_everything_that_shows_them_and_come_back_as_views_of_one_memory():
    """Two trained shards are views of a buffer; a frozen one stands alone, one has no elements."""
    engine: Any = Engine()
    buffer, frozen = torch.arange(6.0), torch.tensor([7.0, 8.0])
    shards = [buffer[:2], buffer[2:6].view(2, 2), frozen, torch.empty(0)]
    parameters = [SimpleNamespace(ds_tensor=shard) for shard in shards]
    engine.module = SimpleNamespace(parameters=lambda: parameters)
    engine.optimizer.lp_param_buffer = buffer
    engine.optimizer.fp16_partitioned_groups_flat = [buffer.narrow(0, 0, 6), None]
    resting = Resting(engine, torch.device("cpu"))
    for turn in range(2):
        places = {shard.data_ptr() for shard in (*shards[:3], buffer)}
        resting.offload_weights()
        resting.offload_weights()
        assert not places & {shard.data_ptr() for shard in (*shards[:3], buffer)}
        resting.reload()
        assert not places & {shard.data_ptr() for shard in (*shards[:3], buffer)}
        assert buffer.tolist() == [0.0 + turn, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert frozen.tolist() == [7.0, 8.0] and shards[1].tolist() == [[2.0, 3.0], [4.0, 5.0]]
        buffer[0] = 1.0
        assert shards[0].tolist() == [1.0, 1.0], "the optimizer writes to the buffer"
        assert engine.optimizer.fp16_partitioned_groups_flat[0].tolist()[0] == 1.0
