"""A whole training step against TRL's GRPOTrainer: same model, prompts, group size, rate, CPU.

    .venv/bin/python benchmarks/trl_step.py [--json FILE] [KEY=VALUE ...]

Both sides begin with the same warm-started Qwen3, see the same prompts in the same order, sample
16 answers to each of 32 of them a step at temperature 1, judge them with the same verifier and take
two AdamW steps at the same rates on the token mean. Ours is what `grpo train` runs, with
learner.shared_prefix on and checkpoints, evaluations and the logging of answers off; KEY=VALUE
changes its recipe.

The task is sums of 2 to 12 terms, whose answers differ in length as natural ones do (the standard
deviation is given in percent of the mean), for a model of 3.2 M parameters; it is built first, in
three to four minutes, where it is not there yet. `--case demo` is the demo: 0.8 M parameters, short
answers, where vLLM's fixed cost of a step outweighs what the step computes. `--case real --model
.real/smollm2-135m` is recipes/smollm2_135m_stories.yaml on a pretrained model, which
benchmarks/real_model.py makes: prompts of a hundred tokens, answers of a few, two to three minutes
a step. Its row of memory is what all processes of a side hold at their fullest, what they share
counted once.

TRL runs in an environment of its own, made by uv where it is not there yet, and samples with
transformers' generate: its vLLM path needs CUDA (it loads weights into the live engine, which
vLLM's CPU build does not take), and its continuous batching is ten times slower on a CPU.

The sides take turns step by step: each waits while the other works, so that both meet the same
machine. A step lasts from the other's end to its own, all that is done between two steps included;
the first two are not counted. Accuracy is the verifier's mean reward over the last five steps, in
which both sides answer the same prompts; the range of its ratio is over those steps.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from common import Row, Spread, accepted, built_model, command, demo_model, parser, report
from processes import Memory

from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import PromptStream, load_rows
from grpo.learner.model_files import context_length, load_tokenizer
from grpo.store.checkpoint import run_folder
from grpo.train.run import train

RECIPE = Path("recipes/tiny_cpu.yaml")
TRL = "trl==1.16.0"
_SHARED = ("torch", "transformers", "math-verify", "pint")  # of what both sides import
WARM_UP, LAST = 2, 5
GIB = 1 << 30
VARIED = [
    "data=benchmarks/varied_sums.yaml",
    "rollout.max_tokens=128",
    "learner.lr=1.0e-4",
    "model.build.hidden_size=256",
    "model.build.layers=4",
    "model.build.kv_heads=2",
    "model.build.head_dim=64",
    "model.build.intermediate_size=768",
    "model.build.warm_start.data=benchmarks/varied_sums.yaml",
    "model.build.warm_start.max_tokens=128",
    "model.build.warm_start.until_accuracy=0.25",
    "model.build.warm_start.check_every=80",
    "model.build.warm_start.batch_size=32",
    "model.build.warm_start.held_out=128",
]


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides train on. `per_device`: sequences of TRL's micro-batches; of real, about as
    many tokens as ours, and elsewhere the fastest of 64, 128 and 256 here."""

    changes: list[str]
    steps: int
    per_device: int
    recipe: Path = RECIPE
    aim: str = ">= 2.0"


CASES = {
    "demo": Case([], 12, 128),
    "varied": Case(VARIED, 7, 128),
    "real": Case([], 7, 16, Path("recipes/smollm2_135m_stories.yaml"), ">= 1.5"),
}


@dataclass(slots=True)
class Run:
    """One side: the wall seconds, mean reward and mean length of every step."""

    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, seconds: float, reward: float, length: float) -> None:
        self.seconds.append(seconds)
        self.rewards.append(reward)
        self.lengths.append(length)

    @property
    def counted_s(self) -> list[float]:
        return self.seconds[WARM_UP:]

    @property
    def length(self) -> float:
        return statistics.mean(self.lengths)

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.rewards[-LAST:])

    def facts(self, samples: int) -> dict[str, Any]:
        return {
            "samples_per_s": round(samples / statistics.mean(self.counted_s), 1),
            "accuracy": round(self.accuracy, 4),
            "mean_length": round(self.length, 1),
            "seconds": [round(s, 3) for s in self.seconds],
            "rewards": [round(r, 4) for r in self.rewards],
        }


class TakingTurns(Screen):
    """The trainer's screen, which hands the machine to TRL when a step of ours is over.

    `connect` waits for TRL and gives the line to it. Both start at once, so that it is called after
    our first step.
    """

    def __init__(self, connect: Callable[[], Any]):
        super().__init__(sys.stderr)
        self._connect = connect
        self._line: Any = None
        self.installed: dict[str, str] = {}  # versions in TRL's environment
        self._resumed = time.perf_counter()
        self.ours, self.theirs = Run(), Run()
        self.spreads: list[float] = []  # of our lengths: deviation over mean

    def step_line(
        self, step: int, steps: int, metrics: Mapping[str, float], eta_s: float | None = None
    ) -> None:
        super().step_line(step, steps, metrics, eta_s)
        seconds = time.perf_counter() - self._resumed
        self.ours.add(seconds, metrics["reward/mean"], metrics["length/mean"])
        self.spreads.append(metrics["length/cv"])
        if self._line is None:
            self._line = self._connect()
            self.installed = self._line.recv()
        self._line.send("your turn")
        rival = self._line.recv()
        self.theirs.add(rival["seconds"], rival["reward"], rival["length"])
        self.note(
            f"TRL   reward {rival['reward']:.3f}  {rival['seconds']:.1f}s, ours {seconds:.1f}s"
        )
        self._resumed = time.perf_counter()


def overrides(case: str, model: Path, steps: int) -> list[str]:
    """The demo's recipe as TRL takes it (token mean, its default), with nothing but training on."""
    return [
        f"name=trl_step_{case}",
        "output=.bench/runs",
        f"model.path={model}",
        f"schedule.steps={steps}",
        "aggregate=token_mean",
        "learner.shared_prefix=true",
        "checkpoint.every=100000",
        "eval.at_start=false",
        "eval.at_end=false",
        "logging.wandb=off",
        "logging.rollouts=false",
        "logging.samples_every=0",
    ]


def write_prompts(recipe: Recipe, model: Path, file: Path) -> None:
    """What our run will be shown, in order; one JSON object a line."""
    tokenizer = load_tokenizer(str(model))
    longest = context_length(str(model)) - recipe.rollout.max_tokens
    rows = load_rows(recipe.data)
    stream = PromptStream(rows, recipe.data, tokenizer, seed=recipe.seed, longest_prompt=longest)
    with file.open("w") as lines:
        for prompt in stream.take(recipe.rollout.prompts * recipe.schedule.steps):
            text = tokenizer.decode(prompt.token_ids)
            row = {"prompt": text, "answer": prompt.row.answer, "token_ids": list(prompt.token_ids)}
            lines.write(json.dumps(row) + "\n")


def settings(recipe: Recipe, model: Path, out: Path, per_device: int) -> dict[str, Any]:
    """The recipe's numbers for trl_rival.py."""
    learner, clip = recipe.learner, recipe.surrogate.options
    return {
        "model": str(model),
        "data": str(out / "prompts.jsonl"),
        "out": str(out),
        "prompts": recipe.rollout.prompts,
        "group_size": recipe.rollout.group_size,
        "minibatches": recipe.schedule.minibatches,
        "per_device": per_device,
        "max_tokens": recipe.rollout.max_tokens,
        "steps": recipe.schedule.steps,
        "lr": learner.lr,
        "warmup_steps": learner.warmup_steps,
        "weight_decay": learner.weight_decay,
        "betas": list(learner.betas),
        "eps": learner.eps,
        "grad_clip": learner.grad_clip,
        "clip_low": clip["clip_low"],
        "clip_high": clip["clip_high"],
        "continuous_batching": False,
        "seed": recipe.seed,
        "socket": str(out / "turns"),
        "threads": os.cpu_count(),
        "verifier": recipe.verifier.name,
    }


def rival(python: Path, recipe: Recipe, model: Path, per_device: int) -> tuple[Path, list[Any]]:
    """The folder of TRL's side, with its settings and prompts, and the command that runs it."""
    shutil.rmtree(run_folder(recipe), ignore_errors=True)
    out = Path(recipe.output).resolve() / f"{recipe.name}_rival"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_prompts(recipe, model, out / "prompts.jsonl")
    wanted = settings(recipe, model, out, per_device)
    (out / "settings.json").write_text(json.dumps(wanted, indent=1))
    return out, [python, Path(__file__).with_name("trl_rival.py"), out / "settings.json"]


def environment_variables() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}


def train_both(
    python: Path, recipe: Recipe, model: Path, per_device: int
) -> tuple[TakingTurns, list[int]]:
    """Both runs to their end; and the most bytes that each had, ours first."""
    out, theirs = rival(python, recipe, model, per_device)
    variables = environment_variables()
    with Listener(str(out / "turns")) as listener, (out / "log").open("w") as log:
        process = subprocess.Popen(theirs, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            screen = TakingTurns(lambda: accepted(listener, process, out / "log"))
            with Memory(process.pid) as memory:
                train(recipe, screen, "never")
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    return screen, memory.peaks


def environment(folder: Path) -> Path:
    """The Python of TRL's environment; makes it with uv, at the versions that we run where both
    need a package."""
    python = folder.resolve() / "bin" / "python"
    if (folder / ".installed").exists():
        return python
    uv = shutil.which("uv") or str(Path(".venv-uv/bin/uv").resolve())
    if not Path(uv).exists():
        sys.exit("uv is needed to install TRL: put it on the PATH, or run `make setup` first")
    ours = {name: version(name).split("+")[0] for name in _SHARED}
    packages = [TRL, *(f"{name}=={number}" for name, number in ours.items())]
    packages += ["datasets", "accelerate", "pydantic", "pyyaml", "antlr4-python3-runtime==4.13.2"]
    print(f"installing into {folder}: {' '.join(packages)}", flush=True)
    variables = dict(os.environ)
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        variables["UV_FIND_LINKS"] = wheels
    else:
        variables["UV_TORCH_BACKEND"] = "cpu"
    subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
    install = [uv, "pip", "install", "-q", "--python", python, *packages]
    subprocess.run(install, check=True, env=variables)
    (folder / ".installed").write_text("\n".join(packages) + "\n")
    return python


def chosen(case: str, arguments: argparse.Namespace) -> tuple[Path, Recipe]:
    """The model folder and the recipe of a case."""
    given = CASES[case]
    if arguments.model is not None:
        model = arguments.model.resolve()
    elif case == "real":
        sys.exit("--case real needs --model, such as .real/smollm2-135m, which real_model.py makes")
    else:
        model = built_model(case, given.changes) if given.changes else demo_model()
    steps = arguments.steps or given.steps
    asked = [*given.changes, *overrides(case, model, steps), *arguments.overrides]
    recipe = load_recipe(given.recipe, asked)
    if recipe.schedule.max_staleness:
        sys.exit("schedule.max_staleness must be 0: a sampler that runs ahead takes no turns")
    return model, recipe


def compare(
    case: str, python: Path, arguments: argparse.Namespace
) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    """The rows and figures of one case, and the versions of TRL's environment."""
    given = CASES[case]
    model, recipe = chosen(case, arguments)
    samples = recipe.rollout.prompts * recipe.rollout.group_size
    steps = recipe.schedule.steps
    screen, peaks = train_both(python, recipe, model, given.per_device)
    ours, theirs = screen.ours, screen.theirs
    facts, rival_facts = ours.facts(samples), theirs.facts(samples)
    ratios = [b / a for a, b in zip(ours.counted_s, theirs.counted_s, strict=True)]
    by_step = [a / b for a, b in zip(ours.rewards[-LAST:], theirs.rewards[-LAST:], strict=True)]
    spread = statistics.mean(screen.spreads)
    rows = [
        Row(
            f"whole step against TRL, {case}, {ours.length:.0f} +- {spread:.0%} tokens: samples/s",
            f"{facts['samples_per_s']:.0f}",
            f"{rival_facts['samples_per_s']:.0f}",
            Spread.of(ratios),
            given.aim,
        ),
        Row(
            f"its accuracy after {samples * steps:,} answers",
            f"{ours.accuracy:.3f}",
            f"{theirs.accuracy:.3f}",
            Spread(ours.accuracy / theirs.accuracy, min(by_step), max(by_step)),
            ">= 1.0",
        ),
        Row(
            "its peak memory, all processes",
            f"{peaks[0] / GIB:.1f} GiB",
            f"{peaks[1] / GIB:.1f} GiB",
            Spread(peaks[0] / peaks[1]),
            "<= 1.0" if case == "real" else "",
        ),
    ]
    results = {
        "samples_per_step": samples,
        "steps": steps,
        "length_spread": round(spread, 3),
        "peak_bytes": peaks,
        "ours": facts,
        "trl": rival_facts,
    }
    return rows, results, screen.installed


def main(arguments: argparse.Namespace) -> None:
    python = environment(arguments.environment)
    rows: list[Row] = []
    results: dict[str, Any] = {}
    installed: dict[str, str] = {}
    for case in arguments.case:
        more, results[case], installed = compare(case, python, arguments)
        rows += more
    results["trl_versions"] = installed
    report("trl_step", command(), results, rows, arguments.json, trl=installed["trl"])


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--environment", type=Path, default=Path(".bench/trl"))
    options.add_argument("--case", nargs="+", default=["varied"], choices=list(CASES))
    options.add_argument("--model", type=Path, help="begin with this folder instead")
    options.add_argument("--steps", type=int, help="default: 7, of the demo 12")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    main(options.parse_args())
