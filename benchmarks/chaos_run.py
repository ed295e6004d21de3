"""What chaos.py does its rounds with: a small run, its command and processes, and what it left."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from grpo.config.recipe import BuildConfig
from grpo.learner.build import build_model, build_tokenizer, save_pretrained

ROOT = Path(__file__).parents[1]
STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 10, 5, 2
PLANTED, CLOCK, LOGS = "planted", "clock", "commands"
# What depends on the clock, on memory, on which requests an engine happens to see together, or on
# what was mended.
MEASURED = (
    "time", "throughput/", "memory/", "sync/", "learn/tflops", "mismatch/", "heal/"
)  # fmt: skip
# After a kill -9 they need minutes to notice that their raylet is gone.
_RAYS_AGENTS = ("ray::Dashboard", "ray::RuntimeEnv")
_PR_SET_PDEATHSIG = 1
_FAMILY_S = 1.0
_GONE_S = 60.0


def build_small_model(folder: Path) -> None:
    """A random Qwen3 of two layers, as the end-to-end tests have it."""
    config = BuildConfig(
        alphabet="0123456789+=}\n", layers=2, hidden_size=64, heads=2, kv_heads=1,
        intermediate_size=128, context=256, tie_embeddings=True,
    )  # fmt: skip
    tokenizer = build_tokenizer(config)
    save_pretrained(build_model(config, tokenizer, seed=1), tokenizer, folder)


def recipe_text(output: Path | str, model: Path | str) -> str:
    return f"""
name: run
output: {output}
plugins: [benchmarks.chaos_plugin]
model: {{path: {model}, dtype: float32, gradient_checkpointing: false}}
data: data/arithmetic.yaml
rollout: {{prompts: 4, group_size: 4, max_tokens: 24}}
verifier: {{name: chaos_even_length, workers: 1}}
flat_groups: {{mode: replace, max_rounds: 4}}
difficulty: {{kind: kalman, window: 3}}
surrogate: {{name: chaos_clip}}
learner: {{lr: 1.0e-3, micro_batch_tokens: 512}}
schedule: {{steps: {STEPS}}}
checkpoint: {{every: {CHECKPOINT_EVERY}}}
eval:
  every: {EVAL_EVERY}
  at_start: false
  suite:
    name: sums
    benchmarks:
      - name: sums
        data: {{extends: data/arithmetic.yaml, task: {{split: heldout, rows: 4}}}}
        samples: 2
        max_tokens: 24
        verifier: chaos_even_length
disk: {{wait_minutes: 0.1}}
heal: {{backoff_s: 0.1}}
logging: {{wandb: "off", samples_every: 0}}
"""


def _die_with_us() -> None:
    """A run whose chaos is killed is asked to stop."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Command:
    """`grpo train` on the recipe of a folder, in a session of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        logs = folder / LOGS
        logs.mkdir(exist_ok=True)
        self.log = logs / f"{len(list(logs.iterdir())) + 1}.txt"
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [str(Path(sys.executable).with_name("grpo")), "train", str(folder / "recipe.yaml")],
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_us,
            )
        self.family: set[psutil.Process] = {self.process}
        self._looked = 0.0

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def look(self, at_once: bool = False) -> None:
        """Remembers which processes the command has started, so that they are known even when
        their parents are gone."""
        if not at_once and time.monotonic() - self._looked < _FAMILY_S:
            return
        self._looked = time.monotonic()
        parents: dict[int, int] = {}
        for each in psutil.process_iter():
            try:
                parents[each.pid] = each.ppid()
            except psutil.Error:  # gone in the meantime
                continue
        known = {member.pid for member in self.family if is_alive(member)}
        found = set(known)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        for pid in found - known:
            with suppress(psutil.Error):
                self.family.add(psutil.Process(pid))

    def members(self, name: str) -> list[psutil.Process]:
        """Those alive whose command line begins with `name` or, for "…name", holds it."""
        self.look(at_once=True)
        return [each for each in self.family if is_alive(each) and _is_named(each, name)]

    def left(self) -> list[str]:
        """Names of what outlives the command by a minute, Ray's agents left out."""
        self.look(at_once=True)
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline and self._left():
            time.sleep(0.2)
        return [_name(each) for each in self._left()]

    def kill(self) -> None:
        self.look(at_once=True)
        for member in self.family:
            if is_alive(member):
                with suppress(psutil.Error):
                    member.kill()
        self.process.wait()

    def _left(self) -> list[psutil.Process]:
        return [
            each
            for each in self.family
            if each != self.process
            and is_alive(each)
            and not any(_is_named(each, agent) for agent in _RAYS_AGENTS)
        ]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    """What it calls itself: Ray's and vLLM's workers write it over their command line."""
    try:
        return " ".join(process.cmdline())[:120]
    except psutil.Error:
        return ""


def _is_named(process: psutil.Process, name: str) -> bool:
    found = _name(process)
    return name[1:] in found if name.startswith("…") else found.startswith(name)


# --- what a run left ---


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, what is whole: steps and evaluations."""
    metrics = folder / "run" / "metrics.jsonl"
    if not metrics.exists():
        return []
    lines = metrics.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def steps_done(folder: Path) -> list[int]:
    # A step whose weights could not be sent has no time of its own.
    return [line["step"] for line in step_lines(folder) if "reward/mean" in line]


@dataclass(frozen=True, slots=True)
class Left:
    """What a finished run has on disk. `figures`: what its metrics hold that is not measured."""

    steps: list[int]
    serials: list[int]
    figures: list[dict[str, Any]]
    weights: bytes = field(repr=False)

    @classmethod
    def of(cls, folder: Path) -> "Left":
        serials: list[int] = []
        for path in sorted((folder / "run" / "rollouts").glob("step_*.parquet")):
            serials += sorted(set(pq.read_table(path, columns=["serial"])["serial"].to_pylist()))
        figures = [
            {key: value for key, value in line.items() if not key.startswith(MEASURED)}
            for line in step_lines(folder)
        ]
        model = folder / "run" / "checkpoints" / "latest" / "hf" / "model.safetensors"
        return cls(steps_done(folder), serials, figures, model.read_bytes())

    def differs(self, undisturbed: "Left") -> str:
        """In what, in a few words; empty where it is the same to the last bit."""
        if self.serials != undisturbed.serials:
            return "other prompts"
        if self.weights != undisturbed.weights:
            return "other weights"
        if [f["step"] for f in self.figures] != [f["step"] for f in undisturbed.figures]:
            return "other lines in the metrics"
        pairs = zip(self.figures, undisturbed.figures, strict=True)
        keys = {k for a, b in pairs for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
        return f"other {', '.join(sorted(keys))}" if keys else ""


def lost_and_repeated(found: list[int], expected: range) -> tuple[list[int], list[int]]:
    counts = Counter(found)
    lost = [number for number in expected if number not in counts]
    return lost, [number for number, count in counts.items() if count > 1]


def tracebacks(folder: Path) -> int:
    logs = sorted((folder / LOGS).iterdir())
    return sum(log.read_text(errors="replace").count("Traceback (most recent") for log in logs)


def writing(folder: Path) -> int | None:
    """The step whose checkpoint is being written, if any is."""
    for path in (folder / "run" / "checkpoints").glob(".writing_step_*"):
        if found := re.search(r"\d+", path.name):
            return int(found[0])
    return None
