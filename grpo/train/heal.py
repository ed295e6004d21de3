"""When a run starts its workers anew, or goes back, by itself; and when it does not any more."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grpo.config.lasting import HealConfig
from grpo.console import Screen
from grpo.errors import Diverged, RunError, WorkerFault
from grpo.fleet.nodes import forget_machines
from grpo.stop import StopRequest, pause
from grpo.store import rollbacks
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.store.disk import PatientDisk
from grpo.store.origin import Branch

_LONGEST_S = 600.0


class Restarts:
    """The budget of one command, and what it was spent on."""

    def __init__(
        self,
        config: HealConfig,
        folder: RunFolder,
        screen: Screen,
        stop: StopRequest,
        disk: PatientDisk,
    ):
        self.folder = folder
        self.branch: Branch | None = None
        self.screen = screen
        self.stop = stop
        self.disk = disk
        self.count = 0
        self.has_begun = False  # all workers have come up at least once
        self._config = config
        self._last: tuple[str, int] | None = None
        self._machines: set[str] = set()

    def begun(self, machines: Sequence[str]) -> None:
        """All workers have come up, on these machines."""
        if lost := self._machines - set(machines):
            self.screen.warn(
                f"the run goes on without {', '.join(sorted(lost))}: its workers are on "
                f"{', '.join(machines)} now"
            )
        self._machines = set(machines)
        self.has_begun = True

    def after(self, fault: WorkerFault | Diverged, step: int) -> Path | None:
        """The checkpoint that the run goes on from; None: its start. `step`: the last finished one.
        Raises the fault, with what is known of it, where going on would not mend it."""
        if not self.has_begun:
            raise fault  # a start that does not succeed at all is no accident
        if isinstance(fault, Diverged):
            return self._go_back(fault, step)
        self._start_anew(fault, step)
        return self._of_this_branch(fault, self.folder.latest_checkpoint())

    def _of_this_branch(self, fault: RunError, own: Path | None) -> Path | None:
        """This checkpoint of the folder, or the one that the run branched off from where it is
        later. Raises RunError where that is gone."""
        branch = self.branch
        if branch is None or branch.led_to(own):
            return own
        if not branch.is_there:
            raise RunError(
                f"{fault}\nThe run would go back to {branch.checkpoint}, where it was begun, which "
                "is gone: bring it back, or go on from another one with --resume DIR"
            ) from fault
        return branch.checkpoint

    def _start_anew(self, fault: WorkerFault, step: int) -> None:
        self.admit(fault, step)
        wait_s = min(_LONGEST_S, self._config.backoff_s * 2 ** (self.count - 1))
        self.screen.warn(
            f"{fault}\nThe run goes on from what is saved, with workers that are started anew, in "
            f"{wait_s:.0f} s ({self.so_far})"
        )
        with self.screen.waiting("until the workers are started anew"):
            pause(wait_s, self.stop)
        self.stop.check()
        forget_machines()  # there may be fewer of them now

    def admit(self, fault: WorkerFault, step: int) -> None:
        """Counts a restart of one worker or of all. Raises RunError where it is one too many, or
        where the same happened at the same place before."""
        place = (fault.where, step)
        if place == self._last:
            raise RunError(
                f"{fault}\nThe same happened at the same place before the workers were started "
                f"anew (after step {step}), so that is no accident"
            ) from fault
        self._last = place
        self._spend(fault)

    @property
    def so_far(self) -> str:
        return f"{self.count} of {self._config.max_restarts}, heal.max_restarts"

    def _go_back(self, fault: Diverged, step: int) -> Path | None:
        """To the newest healthy checkpoint, once. Writes down that, and what is left out from
        there."""
        last = step - fault.distrusted
        checkpoint = self._of_this_branch(fault, self.folder.latest_healthy(last))
        there = self.folder.checkpoint_steps()
        if checkpoint is None and there:  # the start would cost the whole run
            raise RunError(
                f"{fault}.\nThe run has checkpoints of steps {', '.join(map(str, there))} only, "
                "and trusts none of them: look at them, and go on with name=NAME --resume DIR"
            ) from fault
        place = self.folder.rollbacks
        to = 0 if checkpoint is None else TrainState.load(checkpoint).step
        begins = "the start" if checkpoint is None else f"step {to}"
        if any(earlier.to == to for earlier in rollbacks.read(place)):
            raise RunError(
                f"{fault}.\nThe run has gone back to {begins} for such a fault before, so it needs "
                "another recipe: first of all a lower learner.lr or learner.grad_clip, under "
                f"another name=NAME" + (f" and with --resume {checkpoint}" if checkpoint else "")
            ) from fault
        self._spend(fault)
        write = partial(rollbacks.record, place, step, to, str(fault), fault.groups)
        made = self.disk.write("rollbacks", write)
        left_out = ""
        if made.left_out:
            serials = ", ".join(map(str, made.left_out))
            left_out = f". From there on these prompts are left out: {serials}. Their answers are "
            left_out += f"in {place}"
        self.screen.warn(f"{fault}.\nThe run goes back to {begins}, once{left_out}")
        return checkpoint

    def _spend(self, fault: RunError) -> None:
        if self.count >= self._config.max_restarts:
            spent = f" after {self.count} restarts" if self.count else ""
            raise RunError(f"{fault}\nThe run ends{spent} (heal.max_restarts)") from fault
        self.count += 1
