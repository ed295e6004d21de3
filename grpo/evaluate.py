"""Benchmarks: sample, judge, score with intervals; within a run or on any saved model."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo.check import check_benchmark
from grpo.checkpoint import RunFolder
from grpo.cluster import Cluster
from grpo.config import BenchmarkConfig, Choice, SuiteConfig, VerifierConfig
from grpo.console import Screen
from grpo.data import eval_prompts, load_rows
from grpo.errors import Interrupted, UserError
from grpo.learner.prepare import context_length, load_tokenizer, local_model
from grpo.metrics import group_metrics
from grpo.rollout.engine import EngineSpec, on_gpu
from grpo.rollout.pool import RolloutPool
from grpo.rollout.sampling import Sampling, group_seed
from grpo.scores import Score, score_problems
from grpo.session import StopRequest, import_plugins
from grpo.sync.transport import BACKENDS
from grpo.types import Group, ScoredGroup
from grpo.verify.pool import VerifierPool

# Evaluation draws from seeds of its own: no training step has this number.
_EVAL_STEP = -1
_GROUP_TIMEOUT_S = 3600.0
_JUDGE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Scores by name (`avg@8`, `pass@4`, `maj@8`), and what the answers looked like."""

    name: str
    num_problems: int
    scores: dict[str, Score]
    length_mean: float
    truncated_share: float
    no_answer_share: float

    @property
    def average(self) -> Score:
        return next(score for name, score in self.scores.items() if name.startswith("avg@"))


@dataclass(frozen=True, slots=True)
class Bench:
    """What every benchmark of a suite shares."""

    rollouts: RolloutPool
    tokenizer: Any
    max_model_len: int
    workers: int
    timeout_s: float
    screen: Screen
    stop: Callable[[], bool] = lambda: False
    plugins: tuple[str, ...] = ()
    running: tuple[VerifierConfig, VerifierPool] | None = None  # a pool to use where it fits


def run_suite(suite: SuiteConfig, bench: Bench) -> list[BenchmarkResult]:
    """Every benchmark in turn; an empty list where `bench.stop` cut it short."""
    results: list[BenchmarkResult] = []
    for benchmark in suite.benchmarks:
        result = run_benchmark(benchmark, bench)
        if result is None:
            return []
        results.append(result)
    return results


def run_benchmark(config: BenchmarkConfig, bench: Bench) -> BenchmarkResult | None:
    longest_prompt = bench.max_model_len - config.max_tokens
    if longest_prompt < 1:
        raise UserError(
            f"benchmark {config.name!r}: max_tokens {config.max_tokens} leaves no room for a "
            f"prompt in the model's {bench.max_model_len} tokens: lower it"
        )
    prompts = eval_prompts(load_rows(config.data), config.data, bench.tokenizer, longest_prompt)
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    with _judges(config.verifier, bench) as verifier:
        pending: list[tuple[Group, list[Any]]] = []
        with bench.screen.progress(f"eval {config.name}", len(prompts)) as bar:
            for group in bench.rollouts.sample(
                prompts,
                config.samples,
                sampling,
                lambda prompt: group_seed(0, _EVAL_STEP, prompt.serial),
                bench.stop,
            ):
                futures = [verifier.submit(r.text, group.prompt.answer) for r in group.responses]
                pending.append((group, futures))
                bar.advance()
        if len(pending) < len(prompts):
            return None
        scored = [
            ScoredGroup(group, tuple(future.result() for future in futures))
            for group, futures in sorted(pending, key=lambda item: item[0].prompt.serial)
        ]
    return _result(config.name, scored)


@contextmanager
def _judges(asked: Choice, bench: Bench) -> Iterator[VerifierPool]:
    """The pool that is running already if it has the right verifier, else one for this alone."""
    if bench.running is not None:
        config, pool = bench.running
        if (config.name, config.options) == (asked.name, asked.options):
            yield pool
            return
    with VerifierPool(
        asked.name,
        asked.options,
        workers=bench.workers,
        timeout_s=bench.timeout_s,
        plugins=bench.plugins,
    ) as pool:
        yield pool


def _result(name: str, scored: list[ScoredGroup]) -> BenchmarkResult:
    metrics = group_metrics(scored)
    return BenchmarkResult(
        name=name,
        num_problems=len(scored),
        scores=score_problems(
            [[verdict.reward == 1.0 for verdict in group.verdicts] for group in scored],
            [[verdict.parsed for verdict in group.verdicts] for group in scored],
        ),
        length_mean=metrics["length/mean"],
        truncated_share=metrics["truncated/share"],
        no_answer_share=metrics["no_answer/share"],
    )


def show(results: list[BenchmarkResult], title: str, screen: Screen) -> None:
    """A table with a row per score."""
    rows = [
        (
            result.name,
            score.name,
            f"{score.value:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
            result.num_problems,
            f"{result.length_mean:.1f}",
            f"{100 * result.truncated_share:.1f} %",
        )
        for result in results
        for score in result.scores.values()
    ]
    columns = ("benchmark", "score", "value", "95 % interval", "problems", "length", "truncated")
    screen.table(title, columns, rows)


def save(results: list[BenchmarkResult], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def load(path: Path) -> list[BenchmarkResult]:
    return [
        BenchmarkResult(
            **item | {"scores": {name: Score(**s) for name, s in item["scores"].items()}}
        )
        for item in json.loads(path.read_text())
    ]


def target_model(target: str) -> str:
    """The model folder behind a run folder, a checkpoint folder, a model folder or a hub name."""
    folder = Path(target)
    if (folder / "recipe.yaml").is_file():
        checkpoint = RunFolder(folder).latest_checkpoint()
        if checkpoint is None:
            raise UserError(f"run {target} has no checkpoint yet")
        folder = checkpoint
    if (folder / "hf").is_dir():
        return local_model(str((folder / "hf").resolve()))
    return local_model(target)


def evaluate_model(
    target: str, suite: SuiteConfig, dtype: str, out: Path | None, screen: Screen
) -> list[BenchmarkResult]:
    """`grpo eval`: starts one engine on the target's weights and runs the suite on it."""
    import_plugins(suite.plugins)
    for benchmark in suite.benchmarks:
        check_benchmark(benchmark)
    model = target_model(target)
    folder = Path(target) if Path(target).is_dir() else Path("runs") / target.replace("/", "--")
    out = out or folder / "eval" / f"{suite.name}.json"
    spec = EngineSpec(model, dtype, 0, None, 1, BACKENDS["nccl" if on_gpu() else "gloo"], {})
    with StopRequest(screen).listening() as stop, Cluster(folder / "logs") as cluster:
        screen.note(f"starting vLLM on {model}")
        rollouts = RolloutPool(cluster.rollout_workers(spec, 1, None), _GROUP_TIMEOUT_S)
        rollouts.start()
        bench = Bench(
            rollouts=rollouts,
            tokenizer=load_tokenizer(model),
            max_model_len=context_length(model),
            workers=os.cpu_count() or 1,
            timeout_s=_JUDGE_TIMEOUT_S,
            screen=screen,
            stop=stop,
            plugins=tuple(suite.plugins),
        )
        results = run_suite(suite, bench)
    if not results:
        raise Interrupted
    save(results, out)
    show(results, f"{suite.name} on {target}", screen)
    screen.note(f"wrote {out}")
    return results
