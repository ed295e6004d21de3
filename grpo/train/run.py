"""`grpo train`: the loop of one run, from a recipe to a finished folder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpo.config.load import resolved
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import PromptStream, load_rows
from grpo.errors import Interrupted
from grpo.eval import run as evaluate
from grpo.fleet.cluster import Cluster
from grpo.fleet.placement import is_colocated, model_length, transport_of
from grpo.fleet.start import start_workers
from grpo.fleet.weights import WeightSync
from grpo.learner.base_model import load_tokenizer, prepare_model
from grpo.plugins import import_plugins
from grpo.preflight.check import check_recipe
from grpo.report.curves import write_curves
from grpo.stop import StopRequest
from grpo.store.board import open_board
from grpo.store.checkpoint import RunFolder, TrainState, run_folder
from grpo.store.log import MetricsLog, write_rollouts
from grpo.train.ahead import make_collector
from grpo.train.collect import Collected
from grpo.train.goodput import accounts
from grpo.train.metrics import drift_warning, group_metrics, staleness_metrics
from grpo.train.resume import eval_path, starting_point
from grpo.train.update import Updater
from grpo.verify.pool import VerifierPool

_CANARY_TOKENS = 64


@dataclass(slots=True)
class Progress:
    """Where the run stands after its last finished step."""

    step: int = 0
    optimizer_steps: int = 0
    tokens_seen: int = 0


class Trainer:
    """One run, with everything open. `run()` is the loop."""

    def __init__(self, recipe: Recipe, folder: RunFolder, screen: Screen, stop: StopRequest):
        self.recipe = recipe
        self.folder = folder
        self.screen = screen
        self.stop = stop
        self.progress = Progress()
        self.checkpoint_s = 0.0  # of one that was written since the last step
        self.warned_of_drift = False

    @contextmanager
    def opened(self, checkpoint: Path | None) -> Iterator[None]:
        """Starts every process, restores the checkpoint, and closes all of it again."""
        recipe = self.recipe
        with ExitStack() as stack:
            model = prepare_model(recipe, self.folder.model, self.screen)
            self.tokenizer = load_tokenizer(model)
            self.max_model_len = model_length(recipe, model)
            self.stream = PromptStream(
                load_rows(recipe.data),
                recipe.data,
                self.tokenizer,
                seed=recipe.seed,
                longest_prompt=self.max_model_len - recipe.rollout.max_tokens,
            )
            canary = self._canary()
            self.screen.note("starting vLLM and DeepSpeed")
            cluster = stack.enter_context(Cluster(self.folder.path / "logs", is_colocated(recipe)))
            self.verifier = stack.enter_context(
                VerifierPool(
                    recipe.verifier.name,
                    recipe.verifier.options,
                    workers=recipe.verifier.workers,
                    timeout_s=recipe.verifier.timeout_s,
                    plugins=tuple(recipe.plugins),
                )
            )
            self.rollouts, self.learner = start_workers(cluster, recipe, model)
            self.sync = WeightSync(
                self.learner,
                self.rollouts,
                recipe.sync,
                transport_of(recipe),
                canary,
                is_colocated(recipe),
            )
            self.sync.open(cluster, recipe.rollout.tensor_parallel)
            self.collector = make_collector(recipe, self.stream, self.rollouts, self.verifier)
            stack.callback(self.collector.close)
            self.updater = Updater(recipe, self.learner)
            if checkpoint is not None:
                self._restore(checkpoint)
            self.log = MetricsLog(self.folder.metrics)
            self.board = open_board(recipe.logging, recipe.name, resolved(recipe), self.folder.path)
            stack.callback(self.board.finish)
            self.cursor = self.collector.cursor()
            yield

    def _canary(self) -> list[int]:
        """The first prompt of the data, in full or its first tokens, without moving the cursor."""
        first = self.stream.take(1)
        self.stream.put_back(first)
        tokens = list(first[0].token_ids[:_CANARY_TOKENS])
        return tokens if len(tokens) > 1 else tokens * 2

    def _restore(self, checkpoint: Path) -> None:
        state = TrainState.load(checkpoint)
        self.learner.restore(checkpoint)
        self.stream.load_state_dict(state.cursor)
        self.updater.load_state_dict(state.extra)
        self.progress = Progress(state.step, state.extra["optimizer_steps"], state.tokens_seen)
        self.sync.update(state.policy_version)
        self.sync.check_canary(self.recipe.model.dtype)
        self.screen.note(f"resumed after step {state.step} from {checkpoint}")

    def run(self) -> None:
        """Steps until the recipe's last one. Raises Interrupted after a clean stop."""
        recipe = self.recipe
        self.evaluate(self._evaluation_due())  # an interrupted one, too, where the run goes on
        for step in range(self.progress.step + 1, recipe.schedule.steps + 1):
            try:
                metrics, groups = self.train_step(step)
            except Interrupted:
                self.save(step - 1)
                raise
            self.report(step, metrics, groups)
            last = step == recipe.schedule.steps
            if last or self.stop() or step % recipe.checkpoint.every == 0:
                self.save(step)
            if self.stop():
                raise Interrupted
            try:
                self.evaluate(self._evaluation_due())
            except Interrupted:
                self.save(step)
                raise
        self.evaluate(recipe.eval.at_end)

    def _evaluation_due(self) -> bool:
        config, step = self.recipe.eval, self.progress.step
        if step == 0:
            return config.at_start
        return config.every > 0 and step % config.every == 0

    def train_step(self, step: int) -> tuple[dict[str, float], Collected]:
        """Sample, judge, learn, sync: one step, or none of it where the user interrupts."""
        began = time.monotonic()
        collected = self.collector.collect(step, self.screen, self.stop)
        sampled_at = time.monotonic()
        metrics = self.updater.observe(collected.sampled)
        used = self.updater.advantages(collected.used)
        self.sync.make_room()
        if used:
            taken, learned = self.updater.update(used, self.progress.optimizer_steps)
            self.progress.optimizer_steps += taken
            metrics |= learned
        else:
            self.screen.warn(f"step {step}: every group was flat, no update")
        learned_at = time.monotonic()
        stats = self.sync.update(step)
        if self.sync.canary_due():
            metrics["sync/canary_max_abs"] = self.sync.check_canary(self.recipe.model.dtype)
        self.collector.finish(step)
        ended = time.monotonic()
        self.progress.step = step
        self.progress.tokens_seen += collected.num_tokens
        self.cursor = self.collector.cursor()
        metrics |= {
            "groups/sampled": float(len(collected.sampled)),
            "groups/used": float(len(used)),
            "time/wait_s": sampled_at - began,
            "time/learn_s": learned_at - sampled_at,
            "time/sync_s": stats.seconds,
            "time/step_s": ended - began,
            "sync/bytes_per_s": stats.num_bytes / stats.seconds,
            "tokens_seen": float(self.progress.tokens_seen),
        }
        metrics |= group_metrics(collected.sampled) | staleness_metrics(used, step - 1)
        workers = self.recipe.verifier.workers
        metrics |= accounts(collected, used, learned_at - sampled_at, workers)
        if self.checkpoint_s:
            metrics["time/checkpoint_s"], self.checkpoint_s = self.checkpoint_s, 0.0
        scored = {g.group.prompt.serial: g for g in collected.sampled}
        scored |= {g.group.prompt.serial: g for g in used}
        return metrics, Collected(list(scored.values()), used)

    def report(self, step: int, metrics: dict[str, float], groups: Collected) -> None:
        recipe = self.recipe
        if recipe.logging.rollouts:
            write_rollouts(self.folder.rollouts, step, groups.sampled)
        self.log.log(step, metrics)
        self.board.log(step, metrics)
        left_s = (recipe.schedule.steps - step) * metrics["time/step_s"]
        self.screen.step_line(step, recipe.schedule.steps, metrics, left_s)
        if not self.warned_of_drift and (warning := drift_warning(step, metrics)):
            self.screen.warn(warning)
            self.warned_of_drift = True
        every = recipe.logging.samples_every
        if every and step % every == 0:
            self.screen.samples(step, groups.sampled, recipe.logging.samples)

    def save(self, step: int) -> None:
        """A checkpoint of the last finished step; none where nothing has been learned yet."""
        if step == 0:
            return
        began = time.monotonic()
        with self.folder.write_checkpoint(step, self.recipe.checkpoint.keep) as writing:
            self.learner.save(writing)
            TrainState(
                step=step,
                policy_version=step,
                cursor=self.cursor,
                tokens_seen=self.progress.tokens_seen,
                extra={
                    "optimizer_steps": self.progress.optimizer_steps,
                    **self.updater.state_dict(),
                },
            ).save(writing)
        self.checkpoint_s = time.monotonic() - began

    def evaluate(self, due: bool) -> None:
        """Runs the recipe's suite on the rollout engines, once per step."""
        suite, step = self.recipe.eval.suite, self.progress.step
        path = eval_path(self.folder, step)
        if not due or suite is None or path.exists():
            return
        bench = evaluate.Bench(
            rollouts=lambda: self.rollouts,
            tokenizer=self.tokenizer,
            max_model_len=self.max_model_len,
            judges=evaluate.Judges(
                self.recipe.verifier.workers,
                tuple(self.recipe.plugins),
                (self.recipe.verifier, self.verifier),
            ),
            screen=self.screen,
            out=path,
            stop=self.stop,
        )
        began = time.monotonic()
        results = evaluate.run_suite(suite, bench)
        if not results:
            raise Interrupted
        evaluate.save(results, path)
        values = {"time/eval_s": time.monotonic() - began}
        for name, (average, best) in evaluate.track(evaluate.history(path.parent)).items():
            values |= {
                f"eval/{name}/avg": average.last.value,
                f"eval/{name}/peak": average.peak.value,
                f"eval/{name}/best": best.last.value,
                f"eval/{name}/peak_best": best.peak.value,
            }
        self.log.log(step, values)
        self.board.log(step, values)
        evaluate.show(results, f"after step {step}", self.screen)


def train(recipe: Recipe, screen: Screen, resume: str = "auto") -> RunFolder:
    """Runs the recipe in its folder, from its newest checkpoint where `resume` allows.

    `resume`: "auto" (go on where there is something to go on from), "never" (the folder must be
    new), or a checkpoint folder. Raises UserError, RunError, Interrupted.
    """
    import_plugins(recipe.plugins)
    check_recipe(recipe)
    folder = RunFolder(run_folder(recipe))
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock(), StopRequest(screen).listening() as stop:
        checkpoint = starting_point(recipe, folder, screen, resume)
        reached = 0 if checkpoint is None else TrainState.load(checkpoint).step
        if reached >= recipe.schedule.steps and not _final_eval_due(recipe, folder):
            screen.note(
                f"{folder.path} is finished already ({reached} steps); more with schedule.steps=N, "
                "a new run with another name=NAME"
            )
        else:
            trainer = Trainer(recipe, folder, screen, stop)
            with trainer.opened(checkpoint):
                trainer.run()
        _summary(recipe, folder, screen)
    return folder


def _final_eval_due(recipe: Recipe, folder: RunFolder) -> bool:
    wanted = recipe.eval.at_end and recipe.eval.suite is not None
    return wanted and not eval_path(folder, recipe.schedule.steps).exists()


def _summary(recipe: Recipe, folder: RunFolder, screen: Screen) -> None:
    """Curves, and accuracy at the first evaluation, at its peak and at the last one."""
    for path in write_curves(folder):
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
