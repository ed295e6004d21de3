"""Pictures of a run, drawn from its metrics.jsonl."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo.store.checkpoint import RunFolder
from grpo.store.files import replacing
from grpo.store.log import read_metrics

Points = list[tuple[float, float]]
_EVAL_KEY = re.compile(r"eval/(.+)/avg")


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with up to `window - 1` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def write_curves(run: RunFolder) -> list[Path]:
    """reward.png and length.png in the run's folder; a curve of fewer than two steps is left
    out."""
    rows = read_metrics(run.metrics)
    written: list[Path] = []
    rewards = _points(rows, "reward/mean")
    if len(rewards) > 1:
        figure, axes = _figure(run.path.name, "mean reward of a step")
        _draw_curve(axes, rewards, "reward")
        _draw_evals(axes, rows, [reward for _, reward in rewards])
        written.append(_save(figure, run.path / "reward.png"))
    lengths = _points(rows, "length/mean")
    if len(lengths) > 1:
        figure, axes = _figure(run.path.name, "mean answer length (tokens)")
        _draw_curve(axes, lengths, "length")
        axes.legend()
        written.append(_save(figure, run.path / "length.png"))
    return written


def _points(rows: list[dict[str, Any]], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _figure(title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw_curve(axes: Axes, points: Points, label: str) -> None:
    steps, values = zip(*points, strict=True)
    window = min(len(points), max(5, len(points) // 20))
    axes.plot(steps, values, color="C0", alpha=0.3, linewidth=1, label=f"{label} of a step")
    smooth = running_mean(values, window)
    axes.plot(steps, smooth, color="C0", linewidth=2.2, label=f"mean of the last {window} steps")


def _draw_evals(axes: Axes, rows: list[dict[str, Any]], rewards: list[float]) -> None:
    names = sorted({key for row in rows for key in row if _EVAL_KEY.fullmatch(key)})
    # Accuracies share the axis only where rewards have their range.
    shared = min(rewards) >= 0 and max(rewards) <= 1
    target = axes if shared or not names else axes.twinx()
    if target is not axes:
        target.set_ylabel("eval accuracy")
    elif names:
        axes.set_ylabel("mean reward of a step, eval accuracy")
    for number, key in enumerate(names):
        points = _points(rows, key)
        if points:
            steps, values = zip(*points, strict=True)
            label = f"eval {key.removeprefix('eval/').removesuffix('/avg')}"
            target.plot(steps, values, "o--", color=f"C{number + 1}", label=label, zorder=3)
    handles, labels = axes.get_legend_handles_labels()
    if target is not axes:
        more_handles, more_labels = target.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    axes.legend(handles, labels)


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
