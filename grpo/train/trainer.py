"""One run with everything open: step after step, and what is saved when it cannot go on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Collapsed, DiskFull, Diverged, Interrupted, RunError, UserError
from grpo.eval import run as evaluate
from grpo.fleet.weights import UpdateStats
from grpo.stop import StopRequest
from grpo.store.checkpoint import COLLAPSED, RunFolder, TrainState
from grpo.store.disk import PatientDisk
from grpo.store.log import write_rollouts
from grpo.train.best import best_steps
from grpo.train.collapse import CollapseGuards, Finding, diagnosis
from grpo.train.failures import with_example
from grpo.train.goodput import throughput_metrics
from grpo.train.heal import Restarts
from grpo.train.health import SkippedSteps
from grpo.train.metrics import drift_warning, group_metrics, staleness_metrics
from grpo.train.opened import Opened
from grpo.train.pace import Pace
from grpo.train.paid import PaidFor
from grpo.train.resume import eval_path, knows_evaluation
from grpo.train.shadows import agreement
from grpo.train.unreported import Unreported, catch_up
from grpo.train.update import Learned

_ANSWER_S = 60.0  # for a learner that has nothing else to do


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run stands after its last finished step: the last that was learned from."""

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
        self.disk = PatientDisk(recipe.disk.wait_minutes, screen, stop)
        self.progress = Progress()
        self.pace, self.learning = Pace(), Pace()  # of steps, and of what the learner does in them
        self.cursor = parts.collector.cursor()
        self.saved_step, self.saved_at = 0, time.monotonic()
        self.checkpoint_s = 0.0  # of one that was written since the last step
        self.stood_still = False  # no optimizer step of the last step could be taken
        self.policy_state: dict[str, Any] = {}  # of the policy update, after the last finished step
        self.unreported: Unreported | None = None
        self.restarts: Restarts | None = None  # of this command
        self.warned_of_drift = False
        self.paid_for = PaidFor(recipe.verifier)
        self.guards = CollapseGuards(recipe.health, recipe.verifier.lowest_reward or 0.0)
        self.skipped = SkippedSteps(recipe.health.max_skipped, screen)

    def restore(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint: learner, data, estimator, and the engines' weights."""
        state, parts = TrainState.load(checkpoint), self.parts
        with self.screen.waiting(f"restoring the learner from {checkpoint.name}"):
            parts.learner.restore(checkpoint)
        parts.stream.load_state_dict(state.cursor)
        parts.policy_update.load_state_dict(state.extra)
        self.policy_state = parts.policy_update.state_dict()
        self.guards.load_state_dict(state.extra.get("health", {}))
        self.progress = Progress(state.step, state.extra["optimizer_steps"], state.tokens_seen)
        with self.screen.waiting("first weights to the engines"):
            parts.sync.update(state.policy_version)
            parts.sync.check_canary(self.recipe.model.dtype)
        self.cursor = parts.collector.cursor()
        self.saved_step = state.step
        if checkpoint.parent.resolve() == self.folder.checkpoints.resolve():
            written = self.folder, parts.log
            self.disk.write("metrics and rollouts", lambda: catch_up(checkpoint, *written))
        self.screen.note(f"resumed after step {state.step} from {checkpoint}")

    def begin(self) -> None:
        """The engines, which have none yet as a rule, get the weights, and both score one sequence:
        what did not arrive shows before anything is sampled."""
        with self.screen.waiting("first weights to the engines"):
            self.parts.sync.update(0)
            apart = self.parts.sync.check_canary(self.recipe.model.dtype)
        self.screen.note(
            f"engines and learner agree on the first prompts: {apart.mean:.1e} nats apart on "
            f"average, {apart.largest:.1e} at most"
        )

    def run(self) -> None:
        """Steps until the recipe's last one. Whatever ends them early, what is finished is saved
        first, unless it is what went wrong. Raises Interrupted after a stop."""
        try:
            self._run()
        except Interrupted as stopped:
            if not stopped.at_once:
                self._save_before_stop()
            raise
        except Diverged:
            raise
        except Exception:
            self._rescue()
            raise

    def _run(self) -> None:
        recipe = self.recipe
        self.evaluate(self._evaluation_due())  # an interrupted one, too, where the run goes on
        for step in range(self.progress.step + 1, recipe.schedule.steps + 1):
            self.train_step(step)
            self.end_if_collapsed(self.report())
            if self._checkpoint_due():
                self.save()
            self.stop.check()
            self.evaluate(self._evaluation_due())
        self.evaluate(recipe.eval.at_end)

    def _checkpoint_due(self) -> bool:
        config, step = self.recipe.checkpoint, self.progress.step
        if self.stood_still:  # the weights are those of before, and may be why
            return step == self.recipe.schedule.steps
        minutes = (time.monotonic() - self.saved_at) / 60
        overdue = 0 < config.every_minutes <= minutes
        return step == self.recipe.schedule.steps or step % config.every == 0 or overdue

    def _evaluation_due(self) -> bool:
        config, step = self.recipe.eval, self.progress.step
        if step == 0:
            return config.at_start
        return config.every > 0 and step % config.every == 0

    # --- a step ---

    def train_step(self, step: int) -> None:
        """Sample, judge, learn, sync: one step, or none of it where the user interrupts."""
        parts, began = self.parts, time.monotonic()
        collected = parts.collector.collect(step, self.screen, self.stop)
        sampled_at = time.monotonic()
        with self.screen.waiting(f"step {step}: learning", self.learning.usual_s):
            parts.sync.release_gpus()
            learned = parts.policy_update.learn(collected, self.progress.optimizer_steps)
            self.skipped.look(step, learned, parts.learner.num_not_finite)
            unreported = self._settle(step, learned, time.monotonic() - sampled_at)
        unreported.metrics["time/wait_s"] = sampled_at - began
        with self.screen.waiting(f"step {step}: weights to the engines"):
            stats, canary = self._sync(step)
        parts.collector.finish(step)
        unreported.metrics |= canary | {
            "time/sync_s": stats.seconds,
            "sync/bytes_per_s": stats.num_bytes / stats.seconds,
        }
        judged_at = time.monotonic()
        with self.screen.waiting(f"step {step}: shadow verifiers"):
            shadowed = parts.shadows.judge(learned.collected.sampled)
        ended = time.monotonic()
        unreported.groups = replace(learned.collected, sampled=shadowed)
        if names := [shadow.shown_as for shadow in self.recipe.verifier.shadows]:
            unreported.metrics |= agreement(shadowed, names) | {"time/shadow_s": ended - judged_at}
        unreported.metrics["time/step_s"] = ended - began
        self.pace.took(ended - began)

    def _settle(self, step: int, learned: Learned, learn_s: float) -> Unreported:
        """The learner has taken the step: from here on it is finished, whatever happens to the
        engines."""
        groups = learned.collected
        if learned.optimizer_steps or learned.suspects:
            self.learning.took(learn_s)
        else:
            self.screen.warn(f"step {step}: no group had unequal rewards, no update")
        self.progress = Progress(
            step,
            self.progress.optimizer_steps + learned.optimizer_steps,
            self.progress.tokens_seen + groups.num_tokens,
        )
        self.cursor = self.parts.collector.cursor(step)
        self.parts.policy_update.is_under_way = False
        self.stood_still = bool(learned.suspects) and not learned.optimizer_steps
        self.policy_state = self.parts.policy_update.state_dict()
        metrics = learned.metrics | {
            "groups/sampled": float(len(groups.sampled)),
            "groups/used": float(len(groups.used)),
            "tokens_seen": float(self.progress.tokens_seen),
            "time/learn_s": learn_s,
        }
        metrics |= group_metrics(groups.sampled) | staleness_metrics(groups.used, step - 1)
        metrics |= throughput_metrics(groups, learn_s, self.recipe.verifier.workers)
        if self.restarts is not None and self.restarts.count:
            metrics["heal/restarts"] = float(self.restarts.count)
        if self.checkpoint_s:
            metrics["time/checkpoint_s"], self.checkpoint_s = self.checkpoint_s, 0.0
        self.unreported = Unreported(step, metrics, groups)
        return self.unreported

    def _sync(self, step: int) -> tuple[UpdateStats, dict[str, float]]:
        """The engines get the weights; what the canary says of it, where one is due."""
        sync = self.parts.sync
        self.parts.collector.bring_back(step, step)
        stats = sync.update(step)
        if not sync.canary_due(step):
            return stats, {}
        apart = sync.check_canary(self.recipe.model.dtype)
        return stats, {
            "sync/canary_max_abs": apart.largest,
            "sync/canary_mean_abs": apart.mean,
        }

    def report(self) -> list[Finding]:
        """Writes down and shows the last finished step, once; what its metrics say that is worth
        more than a warning."""
        if self.unreported is None:
            return []
        recipe, step = self.recipe, self.unreported.step
        metrics, groups = self.unreported.metrics, self.unreported.groups
        with self.screen.waiting(f"step {step}: writing it down"):
            paid = self.paid_for.look_at(groups.sampled)
            metrics |= paid.shares()
            if recipe.logging.rollouts:
                rollouts = self.folder.rollouts
                self.disk.write("rollouts", lambda: write_rollouts(rollouts, step, groups.sampled))
            self.disk.write("metrics", lambda: self.parts.log.log(step, metrics))
            self.unreported = None
            self.parts.board.log(step, metrics)
        usual_s, left = self.pace.usual_s, recipe.schedule.steps - step
        eta_s = None if usual_s is None else left * usual_s
        self.screen.step_line(step, recipe.schedule.steps, metrics, eta_s)
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

    def end_if_collapsed(self, findings: list[Finding]) -> None:
        """Raises what the recipe has for what was found, if anything was: Diverged, which sends the
        run back, or Collapsed, which ends it, saved."""
        if not findings:
            return
        if self.recipe.health.on_collapse == "rollback":
            raise Diverged(diagnosis(findings), distrusted=self.recipe.health.window)
        self.policy_state |= {COLLAPSED: True}
        self.save(spare=1)  # the one before it may be the last that is any good
        raise Collapsed(diagnosis(findings))

    # --- what stays ---

    def save(self, spare: int = 0) -> None:
        """A checkpoint of the last finished step, unless there is one, or nothing to save. Raises
        Diverged, and keeps the checkpoints that there are, where the weights are not finite.
        `spare`: how many more than usual stay."""
        if self.progress.step == self.saved_step:
            return
        if self.parts.learner.num_not_finite():
            raise Diverged(f"after step {self.progress.step} weights are not finite")
        began = time.monotonic()
        name = f"checkpoint of step {self.progress.step}"
        with self.screen.waiting(f"saving the {name}"):
            self.disk.write(name, lambda: self._write_checkpoint(spare))
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self.checkpoint_s = self.saved_at - began

    def _write_checkpoint(self, spare: int) -> None:
        step, config = self.progress.step, self.recipe.checkpoint
        state = TrainState(
            step=step,
            policy_version=step,
            cursor=self.cursor,
            tokens_seen=self.progress.tokens_seen,
            extra={
                "optimizer_steps": self.progress.optimizer_steps,
                "health": self.guards.state_dict(),
                **self.policy_state,
            },
        )
        stays = {
            *best_steps(self.folder, config.keep_best, step),
            *self._place_to_go_back_to(state),
        }
        with self.folder.write_checkpoint(step, config.keep + spare, stays) as writing:
            self.parts.learner.save(writing)
            if self.unreported is not None:
                self.unreported.keep(writing, self.recipe.logging.rollouts)
            state.save(writing)

    def _place_to_go_back_to(self, state: TrainState) -> set[int]:
        """The step of an earlier checkpoint that must stay, since this one is no such place, or not
        for every fault."""
        health = self.recipe.health
        distrusted = health.window if health.on_collapse == "rollback" else 0
        if state.is_healthy and not distrusted:
            return set()
        place = self.folder.latest_healthy(state.step - distrusted)
        return set() if place is None else {TrainState.load(place).step}

    def _save_before_stop(self) -> None:
        """A full disk changes nothing about why the run ends."""
        try:
            self.report()
            self.save()
        except DiskFull as error:
            self.screen.warn(f"not saved: {error}")

    def _rescue(self) -> None:
        """Something failed. Saves what is finished, as far as learner and disk still answer; of a
        further failure there is only a word, since the first one is what ends the run."""
        if self.parts.policy_update.is_under_way:
            return  # the learner's weights belong to no step
        self._try("the last step's metrics", self.report)
        if self.progress.step > self.saved_step:
            self._try("a checkpoint", self._save_once_the_learner_answers)

    def _save_once_the_learner_answers(self) -> None:
        """It may still be sending weights to an engine that is gone."""
        self.parts.learner.answers_within(self.recipe.sync.timeout_s + _ANSWER_S)
        self.save()

    def _try(self, part: str, save: Callable[[], object]) -> None:
        try:
            save()
        except (RunError, UserError, OSError) as error:
            self.screen.warn(f"{part} could not be saved: {error}")

    def evaluate(self, due: bool) -> None:
        """Runs the recipe's suite on the rollout engines, once per step."""
        suite, step = self.recipe.eval.suite, self.progress.step
        path = eval_path(self.folder, step)
        if not due or suite is None:
            return
        if path.exists():
            if not knows_evaluation(self.folder, step):  # the run ended between the two
                self._log_evaluation(step, {})
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
            write=self.disk.write,
        )
        began = time.monotonic()
        results = evaluate.run_suite(suite, bench)
        if not results:
            raise Interrupted
        self.disk.write("evaluation", lambda: evaluate.save(results, path))
        self._log_evaluation(step, {"time/eval_s": time.monotonic() - began})
        evaluate.show(results, f"after step {step}", self.screen)
        self.keep_if_best(step)

    def _log_evaluation(self, step: int, values: dict[str, float]) -> None:
        """Scores after `step`, and the best so far, into the metrics."""
        folder = self.folder.evaluations
        for name, (average, best) in evaluate.track(evaluate.history(folder)).items():
            values |= {
                f"eval/{name}/avg": average.last.value,
                f"eval/{name}/peak": average.peak.value,
                f"eval/{name}/best": best.last.value,
                f"eval/{name}/peak_best": best.peak.value,
            }
        self.disk.write("metrics", lambda: self.parts.log.log(step, values))
        self.parts.board.log(step, values)

    def keep_if_best(self, step: int) -> None:
        """A checkpoint of the last finished step, which was just evaluated, where it has none and
        is among the best. The next one that is saved does not push it out."""
        if step not in best_steps(self.folder, self.recipe.checkpoint.keep_best, step):
            return
        self.screen.note(f"step {step} is among the best: its checkpoint stays")
        self.save()
