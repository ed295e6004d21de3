"""A real language model learns on two CPU cores: `make real`.

    PYTHONPATH=. .venv/bin/python benchmarks/real.py [--seeds 0 1 2] [--work .real] [KEY=VALUE ...]

Fetches SmolLM2-135M-Instruct (benchmarks/real_model.py says from where), trains it as
recipes/smollm2_135m_stories.yaml says, once for each seed, and shows held-out accuracy before and
after with its 95 % intervals: as the reward's verifier has it, and by a rule that shares nothing
with it. That one asks for no mark and no form: a response is right that mentions the answer and
nothing else that the task might ask for, so that a list of everything is wrong. A run that was
stopped goes on, a finished one is only shown; KEY=VALUE changes the recipe.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.real_model import FOLDER, ORIGIN, NotFetched, fetch
from grpo.console import Screen
from grpo.data.stories import PEOPLE, THINGS
from grpo.eval.history import history
from grpo.eval.result import BenchmarkResult
from grpo.eval.scores import Score, mean_score
from grpo.progress import duration

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
RECIPE = ROOT / "recipes" / "smollm2_135m_stories.yaml"
_TIMES = "seconds.json"  # of each command that trained
_OURS = ("name", "output", "seed", "model", "eval")


def mentions_only(response: str, answer: str) -> bool:
    """Whether the response mentions the answer and nothing else of its kind: no other number where
    it is one, else no other word that the task asks for. A "not" is no answer, nor is a number in
    words."""
    words = set(re.findall(r"[a-z]+", response.lower()))
    if "not" in words:
        return False
    if answer.isdigit():
        numbers = {float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", response)}
        return numbers == {float(answer)}
    return words & _ASKED_FOR == {answer.lower()}


_ASKED_FOR = {word.lower() for word in (*PEOPLE, *THINGS)}


@dataclass(frozen=True)
class Judged:
    """One evaluation by two rules: that of the reward, and `mentions_only`."""

    step: int
    rewarded: Score
    mentioned: Score
    by_kind: dict[str, float]


def judged(folder: Path) -> list[Judged]:
    """The evaluations in a run's folder of them, their answers judged once more."""
    return [_judged(step, result, folder) for step, (result,) in history(folder).items()]


def _judged(step: int, result: BenchmarkResult, folder: Path) -> Judged:
    mentioned: dict[int, list[float]] = {}
    for row in pq.read_table(folder / result.answers).to_pylist():
        right = mentions_only(row["response"], row["answer"])
        mentioned.setdefault(row["serial"], []).append(float(right))
    of_problems = [sum(marks) / len(marks) for marks in mentioned.values()]
    return Judged(
        step,
        result.average,
        mean_score("mentioned", [of_problems]),
        {kind: part.average.value for kind, part in result.parts["kind"].items()},
    )


def train(seed: int, model: Path, work: Path, changes: Sequence[str]) -> Path:
    """The folder of a run that is finished. Exits as `grpo train` does where it ends early."""
    folder = work / "runs" / f"stories_{seed}"
    told = [f"name={folder.name}", f"output={folder.parent}", f"seed={seed}", f"model.path={model}"]
    began, had = time.monotonic(), _size(folder / "metrics.jsonl")
    grpo = str(Path(sys.executable).parent / "grpo")
    running = subprocess.Popen([grpo, "train", str(RECIPE), *told, *changes])
    while running.poll() is None:
        with suppress(KeyboardInterrupt):  # it has got the signal as well, and saves what there is
            running.wait()
    if _size(folder / "metrics.jsonl") > had:  # else it was finished before
        times = folder / _TIMES
        spent_s = json.loads(times.read_text()) if times.is_file() else []
        times.write_text(json.dumps([*spent_s, round(time.monotonic() - began, 1)]))
    if running.returncode:
        raise SystemExit(running.returncode)
    return folder


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def show(folders: Sequence[Path], screen: Screen) -> None:
    rows: list[tuple[str, ...]] = []
    kinds: list[tuple[str, ...]] = []
    for folder in folders:
        times = folder / _TIMES
        spent_s = sum(json.loads(times.read_text())) if times.is_file() else math.nan
        evaluations = judged(folder / "eval")
        before, after = evaluations[0], evaluations[-1]
        rows += [
            (
                folder.name,
                rule,
                _shown(start),
                _shown(end),
                f"{before.step} to {after.step}",
                duration(spent_s),
            )
            for rule, start, end in (
                ("reward", before.rewarded, after.rewarded),
                ("mentions only the answer", before.mentioned, after.mentioned),
            )
        ]
        kinds += [
            (folder.name, kind, f"{before.by_kind[kind]:.3f}", f"{after.by_kind[kind]:.3f}")
            for kind in before.by_kind
        ]
    columns = ("run", "rule", "before", "after", "steps", "training")
    screen.table("held-out accuracy, 95 % intervals", columns, rows)
    screen.table(
        "by kind of question, the reward's rule", ("run", "kind", "before", "after"), kinds
    )


def _shown(score: Score) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def main() -> None:
    words = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=words[0], epilog=words[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=FOLDER)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    for change in given.changes:
        if re.split(r"[.=]", change)[0] in _OURS:
            parser.error(f"{change}: {', '.join(_OURS)} are what this command sets itself")
    screen = Screen()
    try:
        model = fetch(MODEL, given.work / MODEL)
    except NotFetched as error:
        raise SystemExit(f"{MODEL} cannot be fetched: {error}") from None
    screen.note(f"{model}: {(model / ORIGIN).read_text().strip()}")
    show([train(seed, model, given.work, given.changes) for seed in given.seeds], screen)


if __name__ == "__main__":
    main()
