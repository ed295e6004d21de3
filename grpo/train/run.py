"""`grpo train`: one run, from a recipe to a finished folder, through faults it mends."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

from grpo.config.load import resolved
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Diverged, WorkerFault
from grpo.eval import run as evaluate
from grpo.plugins import import_plugins
from grpo.preflight.check import check_recipe
from grpo.stop import StopRequest
from grpo.store.board import Board, open_board
from grpo.store.checkpoint import RunFolder, TrainState, run_folder
from grpo.store.disk import PatientDisk
from grpo.store.origin import branch_of
from grpo.train.heal import Restarts
from grpo.train.opened import OpenBoard, open_run
from grpo.train.resume import eval_path, go_back_to, knows_evaluation, starting_point
from grpo.train.revive import Revival
from grpo.train.trainer import Trainer
from grpo.types import Row


def train(recipe: Recipe, screen: Screen, resume: str = "auto") -> RunFolder:
    """Runs the recipe in its folder, from its newest checkpoint where `resume` allows. Workers that
    fail are started anew, and weights that are not finite are gone back from (`heal`, `health`).

    `resume`: "auto" (go on where there is something to go on from), "never" (the folder must be
    new), or a checkpoint folder. Raises UserError, RunError, Interrupted.
    """
    import_plugins(recipe.plugin_names())
    with screen.waiting("checking the recipe"):
        checked = check_recipe(recipe)
    folder = RunFolder(run_folder(recipe))
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock(), StopRequest(screen, recipe.stop.grace_s).listening() as stop:
        checkpoint = starting_point(recipe, folder, screen, resume)
        reached = 0 if checkpoint is None else TrainState.load(checkpoint).step
        if reached >= recipe.schedule.steps and not _final_eval_due(recipe, folder):
            screen.note(
                f"{folder.path} is finished already ({reached} steps); more with schedule.steps=N, "
                "a new run with another name=NAME"
            )
        else:
            disk = PatientDisk(recipe.disk.wait_minutes, screen, stop)
            restarts = Restarts(recipe.heal, folder, screen, stop, disk)
            restarts.branch = branch_of(folder)
            with _one_board(recipe, folder, screen) as board:
                while fault := _attempt(recipe, checked.rows, checkpoint, restarts, board):
                    checkpoint = restarts.after(*fault)
                    disk.write("run folder", partial(go_back_to, checkpoint, folder, screen))
        _summary(folder, screen)
    return folder


@contextmanager
def _one_board(recipe: Recipe, folder: RunFolder, screen: Screen) -> Iterator[OpenBoard]:
    """Opened by the first attempt that gets so far, for all of them: it sees a single run, however
    often the workers are started anew."""
    with ExitStack() as stack:

        @cache
        def board() -> Board:
            made = open_board(
                recipe.logging, recipe.name, resolved(recipe), folder.path, screen.warn
            )
            stack.callback(made.finish)
            return made

        yield board


def _attempt(
    recipe: Recipe,
    rows: Sequence[Row] | None,
    checkpoint: Path | None,
    restarts: Restarts,
    board: OpenBoard,
) -> tuple[WorkerFault | Diverged, int] | None:
    """Runs to the end; or what kept it from that, and the last step that was finished."""
    folder, screen, stop = restarts.folder, restarts.screen, restarts.stop
    step = 0 if checkpoint is None else TrainState.load(checkpoint).step
    try:
        with ExitStack() as ending, ExitStack() as opened:
            with stop.at_once():  # nothing is lost
                parts = opened.enter_context(open_run(recipe, rows, folder, screen, board))
                trainer = Trainer(recipe, folder, screen, stop, parts)
                trainer.restarts = restarts
                if not parts.colocated:  # else the learner would have to make room first
                    parts.collector.revive = Revival(recipe, parts, restarts)
                if checkpoint is None:
                    trainer.begin()
                else:
                    trainer.restore(checkpoint)
            restarts.begun(parts.cluster.machines)
            try:
                trainer.run()
            finally:
                step = trainer.progress.step
                stop.stop_the_clock()
                ending.enter_context(screen.waiting("ending engines and learner"))
    except (WorkerFault, Diverged) as fault:
        return fault, step
    return None


def _final_eval_due(recipe: Recipe, folder: RunFolder) -> bool:
    wanted = recipe.eval.at_end and recipe.eval.suite is not None
    return wanted and not knows_evaluation(folder, recipe.schedule.steps)


def _summary(folder: RunFolder, screen: Screen) -> None:
    """Curves, and accuracy at the first evaluation, at its peak and at the last one."""
    with screen.waiting("drawing the curves"):
        from grpo.report.curves import write_curves  # matplotlib, which only the end needs

        written = write_curves(folder)
    for path in written:
        screen.note(f"wrote {path}")
    evaluations = evaluate.history(eval_path(folder, 0).parent)
    if len(evaluations) > 1:
        steps = f"(steps {min(evaluations)} to {max(evaluations)})"
        rows = [
            (
                name,
                t.last.name,
                _interval(t.first),
                _interval(t.peak),
                t.peak_step,
                _interval(t.last),
            )
            for name, pair in evaluate.track(evaluations).items()
            for t in pair
        ]
        columns = ("benchmark", "score", "first", "peak", "at step", "last")
        screen.table(f"accuracy {steps}", columns, rows)


def _interval(score: evaluate.Score) -> str:
    return f"{score.value:.3f} (95 %: {score.low:.3f} to {score.high:.3f})"
