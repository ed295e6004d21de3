"""One run to which three things happen that tests/e2e/test_faults.py does not have, by what
benchmarks/chaos.py does its rounds with."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import prepared
from benchmarks.chaos_faults import Fault, ForkServerKilled, NanReward, NewestTruncated
from benchmarks.chaos_run import STEPS, Command, Left, lost_and_repeated, steps_done, tracebacks

pytestmark = pytest.mark.full

SLOW_S = 300.0


def strike(fault: Fault, command: Command, after: int) -> None:
    deadline = time.monotonic() + SLOW_S
    while after not in steps_done(command.folder):
        assert command.code is None, command.text()
        assert time.monotonic() < deadline, command.text()
        time.sleep(0.01)
    assert fault.strike(command)


@pytest.fixture(scope="module")
def battered(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[Command]]]:
    """After step 1 the verifier's fork server is killed, after step 3 an answer is paid nan; after
    step 7 the machine dies with half of the newest checkpoint, step 6's, on its disk."""
    folder, dice = tmp_path_factory.mktemp("chaos") / "battered", random.Random(0)
    prepared(folder, models["tied"])
    nan, truncated = NanReward(folder, dice), NewestTruncated(folder, dice)
    commands = [Command(folder, nan.prepare())]
    try:
        strike(ForkServerKilled(folder, dice), commands[0], after=1)
        strike(nan, commands[0], after=3)
        strike(truncated, commands[0], after=7)
        commands[0].process.wait(SLOW_S)
        truncated.undo()
        commands.append(Command(folder, {}))
        commands[1].process.wait(SLOW_S)
        yield folder, commands
    finally:
        for command in commands:
            command.kill()


def test_it_goes_on_from_the_checkpoint_before_and_says_so(battered):
    _, (first, second) = battered
    assert (first.code, second.code) == (-9, 0), first.text() + second.text()
    assert "step_000006 is damaged" in second.text()
    assert "resumed after step 4" in second.text()


def test_every_step_and_every_prompt_is_there_once(battered):
    left = Left.of(battered[0])
    assert left.steps == list(range(1, STEPS + 1))
    assert lost_and_repeated(left.serials, range(max(left.serials) + 1)) == ([], [])


def test_nobody_sees_a_traceback_and_no_process_is_left(battered):
    folder, commands = battered
    assert tracebacks(folder) == 0
    assert [command.left() for command in commands] == [[], []]
