"""`grpo train`: the loop of one run, from a recipe to a finished folder."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Collapsed, Interrupted
from grpo.eval import run as evaluate
from grpo.plugins import import_plugins
from grpo.preflight.check import check_recipe
from grpo.stop import StopRequest
from grpo.store.checkpoint import RunFolder, TrainState, run_folder
from grpo.store.log import write_rollouts
from grpo.train.best import best_steps
from grpo.train.collapse import CollapseGuards, Finding, diagnosis
from grpo.train.failures import with_example
from grpo.train.goodput import throughput_metrics
from grpo.train.groups import Collected
from grpo.train.metrics import drift_warning, group_metrics, staleness_metrics
from grpo.train.opened import Opened, open_run
from grpo.train.paid import PaidFor
from grpo.train.resume import eval_path, starting_point
from grpo.train.shadows import agreement


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run stands after its last finished step."""

    step: int = 0
    optimizer_steps: int = 0
    tokens_seen: int = 0


class Trainer:
    """One run, with everything open. `run()` is the loop."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, screen: Screen, stop: StopRequest, parts: Opened
    ):
        self.recipe = recipe
        self.folder = folder
        self.screen = screen
        self.stop = stop
        self.parts = parts
        self.progress = Progress()
        self.cursor = parts.collector.cursor()
        self.checkpoint_s = 0.0  # of one that was written since the last step
        self.warned_of_drift = False
        self.paid_for = PaidFor(recipe.verifier)
        self.guards = CollapseGuards(recipe.health, recipe.verifier.lowest_reward or 0.0)

    def restore(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint: learner, data, estimator, and the engines' weights."""
        state, parts = TrainState.load(checkpoint), self.parts
        parts.learner.restore(checkpoint)
        parts.stream.load_state_dict(state.cursor)
        parts.policy_update.load_state_dict(state.extra)
        self.guards.load_state_dict(state.extra.get("health", {}))
        self.progress = Progress(state.step, state.extra["optimizer_steps"], state.tokens_seen)
        parts.sync.update(state.policy_version)
        parts.sync.check_canary(self.recipe.model.dtype)
        self.cursor = parts.collector.cursor()
        self.screen.note(f"resumed after step {state.step} from {checkpoint}")

    def begin(self) -> None:
        """The engines, which have none yet as a rule, get the weights, and both score one sequence:
        what did not arrive shows before anything is sampled."""
        self.parts.sync.update(0)
        apart = self.parts.sync.check_canary(self.recipe.model.dtype)
        self.screen.note(
            f"engines and learner agree on the first prompts: {apart.mean:.1e} nats apart on "
            f"average, {apart.largest:.1e} at most"
        )

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
            self.end_if_collapsed(step, self.report(step, metrics, groups))
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
        parts, began = self.parts, time.monotonic()
        collected = parts.collector.collect(step, self.screen, self.stop)
        sampled_at = time.monotonic()
        parts.sync.release_gpus()
        learned = parts.policy_update.learn(collected, self.progress.optimizer_steps)
        if not learned.optimizer_steps:
            self.screen.warn(f"step {step}: no group had unequal rewards, no update")
        learned_at = time.monotonic()
        stats, metrics = parts.sync.update(step), learned.metrics
        if parts.sync.canary_due(step):
            apart = parts.sync.check_canary(self.recipe.model.dtype)
            metrics |= {"sync/canary_max_abs": apart.largest, "sync/canary_mean_abs": apart.mean}
        parts.collector.finish(step)
        judged_at = time.monotonic()
        shadowed = parts.shadows.judge(learned.collected.sampled)
        ended = time.monotonic()
        self.progress = Progress(
            step,
            self.progress.optimizer_steps + learned.optimizer_steps,
            self.progress.tokens_seen + collected.num_tokens,
        )
        self.cursor = parts.collector.cursor()
        collected = replace(learned.collected, sampled=shadowed)
        learn_s = learned_at - sampled_at
        metrics |= {
            "groups/sampled": float(len(collected.sampled)),
            "groups/used": float(len(collected.used)),
            "time/wait_s": sampled_at - began,
            "time/learn_s": learn_s,
            "time/sync_s": stats.seconds,
            "time/step_s": ended - began,
            "sync/bytes_per_s": stats.num_bytes / stats.seconds,
            "tokens_seen": float(self.progress.tokens_seen),
        }
        metrics |= group_metrics(collected.sampled)
        metrics |= staleness_metrics(collected.used, step - 1)
        metrics |= throughput_metrics(collected, learn_s, self.recipe.verifier.workers)
        if names := [shadow.shown_as for shadow in self.recipe.verifier.shadows]:
            metrics |= agreement(shadowed, names) | {"time/shadow_s": ended - judged_at}
        if self.checkpoint_s:
            metrics["time/checkpoint_s"], self.checkpoint_s = self.checkpoint_s, 0.0
        return metrics, collected

    def report(self, step: int, metrics: dict[str, float], groups: Collected) -> list[Finding]:
        """Logs and shows the step; what its metrics say that is worth more than a warning."""
        recipe = self.recipe
        paid = self.paid_for.look_at(groups.sampled)
        metrics |= paid.shares()
        if recipe.logging.rollouts:
            write_rollouts(self.folder.rollouts, step, groups.sampled)
        self.parts.log.log(step, metrics)
        self.parts.board.log(step, metrics)
        left_s = (recipe.schedule.steps - step) * metrics["time/step_s"]
        self.screen.step_line(step, recipe.schedule.steps, metrics, left_s)
        if not self.warned_of_drift and (warning := drift_warning(step, metrics)):
            self.screen.warn(warning)
            self.warned_of_drift = True
        for warning in self.paid_for.warnings(step, paid):
            self.screen.warn(warning)
        every = recipe.logging.samples_every
        if every and step % every == 0:
            self.screen.samples(step, groups.sampled, recipe.logging.samples)
        findings = self.guards.look(step, metrics)
        for finding in findings:
            if finding.action == "warn":
                self.screen.warn(with_example(finding, groups.sampled))
        return [finding for finding in findings if finding.action != "warn"]

    def end_if_collapsed(self, step: int, findings: list[Finding]) -> None:
        """Raises Collapsed with what was found, if anything was; `stop` saves the step before."""
        if not findings:
            return
        if self.recipe.health.on_collapse == "stop":
            self.save(step, spare=1)  # the one before it may be the last that is any good
        raise Collapsed(diagnosis(findings))

    def save(self, step: int, spare: int = 0) -> None:
        """A checkpoint of the last finished step; none where nothing has been learned yet. `spare`:
        how many more than usual stay."""
        if step == 0:
            return
        began = time.monotonic()
        config = self.recipe.checkpoint
        best = best_steps(self.folder, config.keep_best, step)
        with self.folder.write_checkpoint(step, config.keep + spare, best) as writing:
            self.parts.learner.save(writing)
            TrainState(
                step=step,
                policy_version=step,
                cursor=self.cursor,
                tokens_seen=self.progress.tokens_seen,
                extra={
                    "optimizer_steps": self.progress.optimizer_steps,
                    "health": self.guards.state_dict(),
                    **self.parts.policy_update.state_dict(),
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
            rollouts=lambda: self.parts.rollouts,
            tokenizer=self.parts.tokenizer,
            max_model_len=self.parts.max_model_len,
            verifiers=evaluate.VerifierPools(
                self.recipe.verifier.workers,
                tuple(self.recipe.plugin_names()),
                (self.recipe.verifier, self.parts.verifier),
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
        self.parts.log.log(step, values)
        self.parts.board.log(step, values)
        evaluate.show(results, f"after step {step}", self.screen)
        self.keep_if_best(step)

    def keep_if_best(self, step: int) -> None:
        """A checkpoint of the last finished step, which was just evaluated, where it has none and
        is among the best. The next one that is saved does not push it out."""
        if step not in best_steps(self.folder, self.recipe.checkpoint.keep_best, step):
            return
        self.screen.note(f"step {step} is among the best: its checkpoint stays")
        if step not in self.folder.checkpoint_steps():
            self.save(step)


def train(recipe: Recipe, screen: Screen, resume: str = "auto") -> RunFolder:
    """Runs the recipe in its folder, from its newest checkpoint where `resume` allows.

    `resume`: "auto" (go on where there is something to go on from), "never" (the folder must be
    new), or a checkpoint folder. Raises UserError, RunError, Interrupted.
    """
    import_plugins(recipe.plugin_names())
    checked = check_recipe(recipe)
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
            with open_run(recipe, checked.rows, folder, screen) as parts:
                trainer = Trainer(recipe, folder, screen, stop, parts)
                if checkpoint is None:
                    trainer.begin()
                else:
                    trainer.restore(checkpoint)
                trainer.run()
        _summary(folder, screen)
    return folder


def _final_eval_due(recipe: Recipe, folder: RunFolder) -> bool:
    wanted = recipe.eval.at_end and recipe.eval.suite is not None
    return wanted and not eval_path(folder, recipe.schedule.steps).exists()


def _summary(folder: RunFolder, screen: Screen) -> None:
    """Curves, and accuracy at the first evaluation, at its peak and at the last one."""
    from grpo.report.curves import write_curves  # matplotlib, which only the end of a run needs

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
