"""Which checkpoints stay because an evaluation found them best."""

from grpo.config.lasting import KeepBestConfig
from grpo.eval.history import history, series
from grpo.store.checkpoint import RunFolder


def best_steps(folder: RunFolder, keep_best: KeepBestConfig | None, step: int) -> set[int]:
    """Of the steps that have a checkpoint, and of `step`, which may get one, the k at which the
    run's evaluations found the metric best; of equals the earlier.

    All of it is read from the folder, so that a run that was killed, or that went back, finds what
    is true of it now. A step that was not evaluated, or not by this metric, is none of them.
    """
    if keep_best is None:
        return set()
    values = series(history(folder.evaluations), keep_best.metric)
    candidates = values.keys() & {step, *folder.checkpoint_steps()}
    ranked = sorted(candidates, key=lambda number: (-values[number], number))
    return set(ranked[: keep_best.k])
