"""Engines that die while they sample are started anew; the other engines go on."""

from concurrent.futures import wait

from grpo.config.recipe import Recipe
from grpo.errors import Interrupted, WorkerFault
from grpo.fleet.cluster import Call
from grpo.fleet.engines import POLL_S, START_TIMEOUT_S, RolloutStream
from grpo.train.heal import Restarts
from grpo.train.opened import Opened


class Revival:
    """Called by the driver while the learner has nothing to do."""

    def __init__(self, recipe: Recipe, parts: Opened, restarts: Restarts):
        self._recipe = recipe
        self._parts = parts
        self._restarts = restarts

    def __call__(self, stream: RolloutStream, step: int, version: int) -> None:
        """New processes for the engines that `stream` has lost; all engines get the learner's
        weights, those of step `version`. Raises WorkerFault where that fails, and Interrupted where
        the run is told to stop meanwhile."""
        lost, engines = stream.lost, self._parts.rollouts.workers
        where = ", ".join(sorted(fault.where for fault in lost.values()))
        told = "\n".join(map(str, lost.values()))
        self._restarts.admit(WorkerFault(where, told), step - 1)
        self._restarts.screen.warn(
            f"{told}\nThe groups are sampled again, and {', '.join(lost)} started anew, while the "
            f"rest of the run goes on ({self._restarts.so_far})"
        )
        starting: list[Call] = []
        with self._restarts.screen.waiting(f"loading the model into {', '.join(lost)}") as spell:
            for index, engine in enumerate(engines):
                if engine.name in lost:
                    engines[index] = self._parts.cluster.replace(engine)
                    starting.append(engines[index].call("start"))
            self._wait(starting)
            spell.say("weights to the engines")
            sync = self._parts.sync
            sync.open(self._parts.cluster, self._recipe.rollout.tensor_parallel)
            sync.update(version)
            sync.check_canary(self._recipe.model.dtype)
        for name in lost:
            stream.found(name)
        self._restarts.screen.note(f"step {step}: {', '.join(lost)} samples again")

    def _wait(self, calls: list[Call]) -> None:
        left_s = START_TIMEOUT_S
        while any(not call.future.done() for call in calls):
            if self._restarts.stop():
                raise Interrupted
            if left_s <= 0:
                names = ", ".join(call.worker.name for call in calls)
                told = f"{names} did not start in {START_TIMEOUT_S:.0f} s"
                raise WorkerFault(f"{names} start", told)
            wait([call.future for call in calls], timeout=POLL_S)
            left_s -= POLL_S
        for call in calls:
            call.result()
