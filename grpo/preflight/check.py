"""`grpo check`: everything about a recipe that can be known without starting it."""

from dataclasses import dataclass

import torch

from grpo.algo import ADVANTAGES, AGGREGATORS, CORRECTIONS, SURROGATES
from grpo.algo.advantage import StepRewards
from grpo.config.recipe import Recipe
from grpo.data.load import describe, local_rows
from grpo.errors import UserError
from grpo.eval.check import check_benchmark
from grpo.eval.history import metric_names
from grpo.fleet.placement import check_layout, transport_of
from grpo.fleet.places import check_places
from grpo.preflight.lora import check_lora
from grpo.preflight.model import Fact, check_lengths, check_model
from grpo.preflight.room import check_output, room_for_checkpoints, shared_memory_warning
from grpo.registry import call, nearest
from grpo.types import Row
from grpo.verify.ready import check_verifier


@dataclass(frozen=True, slots=True)
class Checked:
    """facts: what the recipe comes to, as (what, value)
    rows: of `data`, as they were read; None where they are still on the hub
    warnings: what may end the run all the same
    """

    facts: list[Fact]
    rows: list[Row] | None
    warnings: list[str]


def check_recipe(recipe: Recipe) -> Checked:
    """What the recipe comes to. Raises UserError for what cannot work."""
    steps = recipe.schedule.minibatches * recipe.schedule.passes
    answers = recipe.rollout.prompts * recipe.rollout.group_size
    _check_advantage(recipe)
    AGGREGATORS.bind(recipe.aggregate.name, recipe.aggregate.options)
    rule = recipe.regularization.aggregate
    AGGREGATORS.bind(rule.name, rule.options)
    SURROGATES.bind(recipe.surrogate.name, recipe.surrogate.options)
    correction = recipe.correction_name()
    if correction != "none":
        CORRECTIONS.bind(correction, recipe.correction.options)
    verifier = recipe.verifier
    check_verifier(verifier.name, verifier.options, verifier.timeout_s, "verifier.timeout_s")
    for shadow in verifier.shadows:
        check_verifier(shadow.name, shadow.options, verifier.timeout_s, "verifier.timeout_s")
    check_places()
    check_output(recipe)
    check_layout(recipe)
    _check_keep_best(recipe)
    rows = local_rows(recipe.data)
    model = check_model(recipe)
    facts = [
        *model.facts,
        ("data", describe(recipe.data, rows)),
        (
            "answers per step",
            f"{recipe.rollout.prompts} prompts x {recipe.rollout.group_size} = {answers}",
        ),
        ("optimizer steps per step", str(steps)),
        ("estimator", _estimator(recipe)),
        ("weights travel by", transport_of(recipe)),
    ]
    if recipe.learner.lora is not None:
        facts.insert(1, ("LoRA", check_lora(recipe.learner.lora, recipe.model)))
    if verifier.shadows:
        facts.append(("shadow verifiers", ", ".join(one.shown_as for one in verifier.shadows)))
    for benchmark in recipe.eval.suite.benchmarks if recipe.eval.suite else []:
        facts.append((f"benchmark {benchmark.name}", check_benchmark(benchmark)))
    if model.max_model_len is not None:
        check_lengths(recipe, rows, model.tokenizer, model.max_model_len)
    room = room_for_checkpoints(recipe)
    if room is not None:
        facts.append(("checkpoints", room.in_words))
    warnings = [room and room.lack, shared_memory_warning(recipe)]
    return Checked(facts, rows, [warning for warning in warnings if warning])


def _estimator(recipe: Recipe) -> str:
    parts = [recipe.advantage.name, recipe.surrogate.name, recipe.aggregate.name]
    if recipe.difficulty is not None:
        parts.append(f"HA-DW ({recipe.difficulty.kind})")
    if recipe.correction_name() != "none":
        parts.append(recipe.correction_name())
    if recipe.regularization.kl:
        parts.append(f"{recipe.regularization.kl:g} KL")
    if recipe.regularization.entropy:
        parts.append(f"{recipe.regularization.entropy:g} entropy")
    return ", ".join(parts)


def _check_advantage(recipe: Recipe) -> None:
    """Its options, and that it takes a group of the recipe's size."""
    name = recipe.advantage.name
    advantage = ADVANTAGES.bind(name, recipe.advantage.options)
    rewards_G = torch.zeros(recipe.rollout.group_size, dtype=torch.float64)
    rewards_G[0] = 1
    step = StepRewards([rewards_G], [torch.ones(len(rewards_G))])
    try:
        call(advantage, rewards_G, step=step)
    except ValueError as error:
        raise UserError(f"advantage {name!r}, groups of {len(rewards_G)}: {error}") from error


def _check_keep_best(recipe: Recipe) -> None:
    """That evaluations give the metric, and that there are some to compare."""
    keep_best, suite = recipe.checkpoint.keep_best, recipe.eval.suite
    if keep_best is None:
        return
    metric = keep_best.metric
    if suite is None:
        raise UserError(
            f"checkpoint.keep_best.metric is {metric!r}, but nothing is evaluated: set eval.suite "
            "and eval.every, or leave keep_best out"
        )
    names = metric_names([benchmark.name for benchmark in suite.benchmarks])
    if metric not in names:
        raise UserError(
            f"checkpoint.keep_best.metric {metric!r} is none that the suite {suite.name!r} gives"
            f"{nearest(metric, names)} It gives: {', '.join(names)}"
        )
    if recipe.eval.every == 0:
        raise UserError(
            f"checkpoint.keep_best.metric is {metric!r}, but eval.every is 0, so that only the "
            "start and the end are evaluated: set eval.every to a number of steps"
        )
