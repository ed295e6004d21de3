"""Benchmarks: sample, judge, score with intervals; within a run or on any saved model."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from grpo.config.engine import refused
from grpo.config.suite import BenchmarkConfig, SuiteConfig
from grpo.console import Screen
from grpo.data import eval_prompts
from grpo.errors import Interrupted, UserError
from grpo.eval.check import check_benchmark, longest_prompt
from grpo.eval.history import history, track
from grpo.eval.result import (
    BenchmarkResult,
    answers_folder,
    check_writable,
    relative,
    result_of,
    save,
    show,
)
from grpo.eval.rows import (
    VerifierPools,
    Waiting,
    benchmark_rows,
    labels_of,
    submit,
    with_verdicts,
)
from grpo.eval.scores import Score
from grpo.eval.store import Answered, AnswerStore, Write, judged_by, write_once
from grpo.fleet.bundles import in_words, most_engines
from grpo.fleet.cluster import Cluster
from grpo.fleet.engines import RolloutPool
from grpo.fleet.placement import gpus_fault, gpus_of_run
from grpo.fleet.start import needed_everywhere
from grpo.learner.base_model import local_model
from grpo.learner.model_files import context_length, load_tokenizer
from grpo.plugins import import_plugins
from grpo.rollout.engine import EngineSpec, on_gpu
from grpo.rollout.outlook import Outlook, SoFar
from grpo.rollout.sampling import Sampling, group_seed
from grpo.rollout.stops import stop_tokens
from grpo.stop import StopRequest
from grpo.store.checkpoint import RunFolder
from grpo.store.disk import PatientDisk
from grpo.sync.transport import BACKENDS
from grpo.types import Group, Prompt
from grpo.verify.pool import VerifierPool

__all__ = [
    "Bench",
    "Score",
    "VerifierPools",
    "evaluate_model",
    "history",
    "run_suite",
    "save",
    "show",
    "track",
]

# Evaluation draws from seeds of its own: no training step has this number.
_EVAL_STEP = -1
_GROUP_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What every benchmark of a suite shares.

    rollouts: called where there is something to sample, so that engines start only then
    out: the result's file, which the answers lie beside
    model: what tells these weights from any others. With it, answers that an earlier evaluation
        of the same weights left behind are used again; None: never
    write: what writes answers; it may wait for a disk that is full
    """

    rollouts: Callable[[], RolloutPool]
    tokenizer: Any
    max_model_len: int
    verifiers: VerifierPools
    screen: Screen
    out: Path
    stop: Callable[[], bool] = lambda: False
    model: Mapping[str, Any] | None = None
    write: Write = write_once


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
    longest = longest_prompt(config, bench.max_model_len)
    rows = benchmark_rows(config)
    with bench.screen.waiting(f"eval {config.name}: prompts"):
        asked = eval_prompts(rows, config.data, bench.tokenizer, longest)
    store = _store(config, asked, bench)
    with bench.verifiers.pool(config.verifier, config.judge_timeout_s) as verifier:
        waiting = _answers(config, asked, bench, store, verifier)
        if len(waiting) < len(asked):
            return None
        groups = with_verdicts(config.name, waiting, bench.screen, bench.stop)
    if groups is None:
        return None
    with bench.screen.waiting(f"eval {config.name}: scores"):
        store.finish(groups)
        return result_of(config.name, groups, relative(store.path, bench.out.parent))


def _store(config: BenchmarkConfig, prompts: Sequence[Prompt], bench: Bench) -> AnswerStore:
    """Answers of known weights have a file of their own for each way to sample them."""
    sampled: dict[str, Any] = {
        "model": bench.model,
        "prompts": _digest([[prompt.row.id, list(prompt.token_ids)] for prompt in prompts]),
        "samples": config.samples,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
    }
    name = config.name if bench.model is None else f"{config.name}-{_digest(sampled)[:8]}"
    judged = judged_by(config.verifier, config.judge_timeout_s)
    path = answers_folder(bench.out) / f"{name}.parquet"
    return AnswerStore(path, sampled, judged, write=bench.write)


def _answers(
    config: BenchmarkConfig,
    asked: Sequence[Prompt],
    bench: Bench,
    store: AnswerStore,
    verifier: VerifierPool,
) -> list[Waiting]:
    """Answers to the prompts, from the store or sampled now, on their way to verdicts; not all of
    them where `bench.stop` says so. Whatever happens, what was sampled is in the store."""
    found = {} if bench.model is None else store.load(config.samples, bench.screen.warn)
    if found:
        bench.screen.note(f"{config.name}: answers to {len(found)} of {len(asked)} problems exist")
    waiting = [
        submit(_current(found[prompt.serial], prompt, config), verifier)
        for prompt in asked
        if prompt.serial in found
    ]
    left = [prompt for prompt in asked if prompt.serial not in found]
    if not left:
        return waiting
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    rollouts = bench.rollouts()
    done = SoFar.of(_so_far(answered) for answered, _ in waiting)
    total, outlook = len(asked) * config.samples, Outlook(config.max_tokens)
    with bench.screen.progress(f"eval {config.name}", total, "answers") as bar:

        def watch(under_way: SoFar) -> None:
            outlook.show(bar, total, SoFar.of((done, under_way)))

        try:
            for group in rollouts.sample(
                left,
                config.samples,
                sampling,
                lambda prompt: group_seed(0, _EVAL_STEP, prompt.serial),
                bench.stop,
                watch=watch,
            ):
                waiting.append(submit(_answered(group, config), verifier))
                store.add(*waiting[-1])
                done = SoFar.of((done, _so_far(waiting[-1][0])))
        finally:
            store.flush()
    return waiting


def _so_far(answered: Answered) -> SoFar:
    return SoFar(len(answered.responses), sum(answered.lengths or ()))


def _answered(group: Group, config: BenchmarkConfig) -> Answered:
    row, responses = group.prompt.row, group.responses
    return Answered(
        serial=group.prompt.serial,
        row_id=row.id,
        problem=row.asked,
        answer=row.answer,
        responses=tuple(response.text for response in responses),
        lengths=tuple(len(response.token_ids) for response in responses),
        finish_reasons=tuple(response.finish_reason for response in responses),
        labels=labels_of(row, config),
        thinking=group.prompt.thinking,
    )


def _current(found: Answered, prompt: Prompt, config: BenchmarkConfig) -> Answered:
    """Stored answers with what the row and its prompt say today; where a verdict may depend on
    that, new ones are needed."""
    row, thinking = prompt.row, prompt.thinking
    same = (found.answer, found.thinking) == (row.answer, thinking)
    return replace(
        found,
        problem=row.asked,
        answer=row.answer,
        verdicts=found.verdicts if same else None,
        labels=labels_of(row, config),
        thinking=thinking,
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How vLLM is started for an evaluation.

    engines: how many; None: as many as fit the GPUs that there are, on CPU one
    tensor_parallel: GPUs that one engine is spread over
    extra: passed to vLLM's AsyncEngineArgs as it is
    trust_remote_code: the model's own code may be run
    """

    dtype: str = "float32"
    engines: int | None = None
    tensor_parallel: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    def count(self) -> int:
        """Raises UserError where there are too few GPUs, on this machine or in the Ray cluster
        that it joins, and where one of the two has GPUs and the other none."""
        if fault := gpus_fault():
            raise UserError(fault)
        gpus = gpus_of_run()
        if gpus is None:
            return self.engines or 1
        most = most_engines(self.tensor_parallel, gpus)
        count = self.engines or max(1, most)
        if count > most:
            raise UserError(
                f"--engines {count} with --tensor-parallel {self.tensor_parallel} need "
                f"{count * self.tensor_parallel} GPUs, those of an engine on one machine, and "
                f"there are {in_words(gpus)}: lower one"
            )
        return count

    def max_model_len(self, context: int) -> int:
        """Tokens of prompt and answer together, at most. Raises UserError."""
        asked = self.extra.get("max_model_len", context)
        if type(asked) is not int or not 0 < asked <= context:
            raise UserError(
                f"--engine max_model_len={asked}: expected a number of tokens up to the model's "
                f"context, {context}"
            )
        return asked


def weights_identity(model: str, options: EngineOptions) -> dict[str, Any]:
    """Tells a model folder's content from any other's, by names, sizes and times of its files, and
    what computes with it from other engines."""
    files = sorted(path for path in Path(model).iterdir() if path.is_file())
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    identity: dict[str, Any] = {"dtype": options.dtype, "files": _digest(facts)}
    if options.extra:
        identity["engine"] = dict(options.extra)
    return identity


def evaluate_model(
    target: str, suite: SuiteConfig, options: EngineOptions, out: Path | None, screen: Screen
) -> list[BenchmarkResult]:
    """`grpo eval`: runs the suite on the target's weights. Engines start where answers are
    missing; those that an earlier, interrupted evaluation left behind are used again."""
    import_plugins(suite.plugins)
    for benchmark in suite.benchmarks:
        check_benchmark(benchmark)
    options.count()
    if why := refused(options.extra, of_eval=True):
        raise UserError(f"--engine sets {why}")
    model = target_model(target)
    with screen.waiting("reading the tokenizer"):
        max_model_len = options.max_model_len(context_length(model, options.trust_remote_code))
        tokenizer = load_tokenizer(model, options.trust_remote_code)
        stop_tokens(model, tokenizer.eos_token_id)  # raises here what would end every engine
    folder = Path(target) if Path(target).is_dir() else Path("runs") / target.replace("/", "--")
    out = out or folder / "eval" / f"{suite.name}.json"
    check_writable(out)
    with StopRequest(screen).listening() as stop, ExitStack() as ending, ExitStack() as opened:
        disk = PatientDisk(0, screen, stop)  # the answers that there are wait for the next command
        bench = Bench(
            rollouts=_engines_on_demand(model, options, out.parent / "logs", screen, opened),
            tokenizer=tokenizer,
            max_model_len=max_model_len,
            verifiers=VerifierPools(len(os.sched_getaffinity(0)), tuple(suite.plugins)),
            screen=screen,
            out=out,
            stop=stop,
            model=weights_identity(model, options),
            write=disk.write,
        )
        results = run_suite(suite, bench)
        ending.enter_context(screen.waiting("ending the engines"))
    if not results:
        raise Interrupted
    disk.write("scores", lambda: save(results, out))
    show(results, f"{suite.name} on {target}", screen)
    screen.note(f"wrote {out}")
    return results


def _engines_on_demand(
    model: str, options: EngineOptions, logs: Path, screen: Screen, opened: ExitStack
) -> Callable[[], RolloutPool]:
    """Starts the engines at the first call; `opened` closes them."""

    @cache
    def start() -> RolloutPool:
        count = options.count()
        spec = EngineSpec(
            model=model,
            dtype=options.dtype,
            seed=0,
            max_model_len=None,
            tensor_parallel=options.tensor_parallel,
            transfer_backend=BACKENDS["nccl" if on_gpu() else "gloo"],
            extra=dict(options.extra),
            trust_remote_code=options.trust_remote_code,
        )
        # One engine takes every core by itself; several share them.
        threads = None if count == 1 else max(1, len(os.sched_getaffinity(0)) // count)
        several = "" if count == 1 else f"{count} times "
        screen.note(f"starting vLLM {several}on {model}; its log is in {logs}")
        with screen.waiting("starting Ray") as spell:
            cluster = opened.enter_context(Cluster(logs))
            cluster.reserve(count, options.tensor_parallel, ranks=0)
            cluster.check_shared(needed_everywhere(model, ()))
            spell.say("loading the model into vLLM")
            rollouts = RolloutPool(cluster.rollout_workers(spec, count, threads), _GROUP_TIMEOUT_S)
            rollouts.start()
        return rollouts

    return start
