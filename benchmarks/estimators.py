"""The demo under seven estimators: accuracy before and after, and what each rule does with mass.

    .venv/bin/python benchmarks/estimators.py run MODEL_FOLDER [key=value ...]
    .venv/bin/python benchmarks/estimators.py draw docs/images/estimators.png

All runs begin with the same weights, the demo's warm-started model (runs/tiny_cpu/model), and see
the same prompts. A run that is finished already is not taken again.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from grpo.report.curves import running_mean
from grpo.store.log import read_metrics

VARIANTS: dict[str, list[str]] = {
    "token": ["aggregate=token_mean"],
    "sequence": ["aggregate=seq_mean_token_mean"],
    "dr_grpo": ["aggregate=seq_mean_token_sum_norm", "advantage=group_center"],
    "balanced": ["aggregate=balanced"],
    "delta_l_0.75": ["aggregate={name: delta_l, alpha: 0.75}"],
    "delta_l_1": ["aggregate={name: delta_l, alpha: 1.0}"],
    "balanced_ha_dw": ["aggregate=balanced", "difficulty={}"],
}
RULES = {
    "token": "token_mean",
    "sequence": "seq_mean_token_mean",
    "dr_grpo": "seq_mean_token_sum_norm",
    "delta_l_0.75": "delta_l",
    "delta_l_1": "delta_l",
}
FACTS = ["positive_share", "longest_share", "effective_responses", "predicted_cv"]
WINDOW = 10


def folder(variant: str) -> Path:
    return Path("runs") / f"estimator_{variant}"


def run(model: str, overrides: list[str]) -> None:
    for variant, settings in VARIANTS.items():
        command = [
            str(Path(sys.executable).with_name("grpo")), "train", "recipes/tiny_cpu.yaml",
            f"name={folder(variant).name}", f"model.path={model}", *settings, *overrides,
        ]  # fmt: skip
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


def accuracies(variant: str) -> list[str]:
    """avg@k with its interval, before and after."""
    cells: list[str] = []
    for path in sorted((folder(variant) / "eval").glob("step_*.json")):
        (result,) = json.loads(path.read_text())
        name = next(name for name in result["scores"] if name.startswith("avg@"))
        score = result["scores"][name]
        cells.append(f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})")
    return cells


def table() -> None:
    print("| run | settings | before | after | answer length at the end |\n|---|---|---|---|---|")
    for variant, settings in VARIANTS.items():
        rows = read_metrics(folder(variant) / "metrics.jsonl")
        lengths = [row["length/mean"] for row in rows if "length/mean" in row][-WINDOW:]
        before, after = accuracies(variant)
        shown = ", ".join(f"`{setting}`" for setting in settings)
        print(f"| {variant} | {shown} | {before} | {after} | {sum(lengths) / len(lengths):.1f} |")


def draw(path: Path) -> None:
    """Reward, length gap and coupling, then each run's own rule in the four shadow facts."""
    figure = Figure(figsize=(13, 12), layout="constrained")
    axes: list[Any] = list(figure.subplots(4, 2).flat)
    panels = ["reward/mean", "length/positive_minus_negative", "shadow/sign_length_coupling"]
    titles = [*panels, "learn/pg_loss", *(f"shadow/<own rule>/{fact}" for fact in FACTS)]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for number, variant in enumerate(VARIANTS):
        rows = [r for r in read_metrics(folder(variant) / "metrics.jsonl") if "reward/mean" in r]
        rule = RULES.get(variant, "balanced")
        keys = [*panels, "learn/pg_loss", *(f"shadow/{rule}/{fact}" for fact in FACTS)]
        for axis, key in zip(axes, keys, strict=True):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            steps, values = zip(*points, strict=True)
            axis.plot(steps, running_mean(values, WINDOW), color=f"C{number}", label=variant)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"The demo under seven estimators, means of the last {WINDOW} steps")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", model, *overrides]:
            run(model, overrides)
        case ["draw", path]:
            table()
            draw(Path(path))
        case _:
            sys.exit(__doc__)
