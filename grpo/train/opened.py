"""Everything that a run has open, from its processes to its log."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import PromptStream, load_rows
from grpo.fleet.cluster import Cluster
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.placement import Placement, place
from grpo.fleet.start import start_workers
from grpo.fleet.weights import WeightSync
from grpo.learner.base_model import looks_local, prepare_model
from grpo.learner.model_files import load_tokenizer
from grpo.preflight.lora import describe as describe_lora
from grpo.preflight.model import check_lengths, examine
from grpo.preflight.room import room_for_checkpoints, shared_memory_warning
from grpo.store.board import Board
from grpo.store.checkpoint import RunFolder
from grpo.store.log import MetricsLog
from grpo.store.rollbacks import left_out
from grpo.train.collect import Collector
from grpo.train.shadows import ShadowVerifiers, open_shadows
from grpo.train.update import PolicyUpdate
from grpo.types import Row
from grpo.verify.pool import VerifierPool

OpenBoard = Callable[[], Board]
# So many tokens that rounding averages out, from as many prompts as that may take.
_CANARY_TOKENS = 128
_CANARY_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts of one run, all of them started."""

    cluster: Cluster
    tokenizer: Any
    max_model_len: int
    stream: PromptStream
    verifier: VerifierPool
    shadows: ShadowVerifiers
    rollouts: RolloutPool
    learner: Learner
    sync: WeightSync
    collector: Collector
    policy_update: PolicyUpdate
    colocated: bool
    log: MetricsLog
    board: Board


@contextmanager
def open_run(
    recipe: Recipe,
    rows: Sequence[Row] | None,
    folder: RunFolder,
    screen: Screen,
    board: OpenBoard,
) -> Iterator[Opened]:
    """Starts every process and closes all of them again. `rows`: those of the data, where they
    have been read already."""
    with ExitStack() as stack:
        model = prepare_model(recipe, folder.model, screen)
        with screen.waiting("reading tokenizer and data"):
            tokenizer, placement, stream = _read(recipe, rows, model)
        canary = _canary(stream, placement.max_model_len - 1)
        _announce(recipe, model, placement, screen)
        with screen.waiting("starting Ray and the verifier") as spell:
            cluster = stack.enter_context(Cluster(folder.path / "logs", placement.colocated))
            verifier = stack.enter_context(_verifier_pool(recipe))
            shadows = stack.enter_context(open_shadows(recipe))
            spell.say("loading the model into vLLM and DeepSpeed")
            rollouts, learner = start_workers(cluster, recipe, model, placement)
            sync = WeightSync(
                learner,
                rollouts,
                recipe.sync,
                placement.transport,
                canary,
                colocated=placement.colocated,
                rest_weights=recipe.learner.offload_weights,
            )
            spell.say("connecting vLLM and DeepSpeed")
            sync.open(cluster, recipe.rollout.tensor_parallel)
        serials = left_out(folder.rollbacks)
        collector = Collector(recipe, stream, rollouts, verifier, shadows, serials)
        stack.callback(collector.close)
        yield Opened(
            cluster=cluster,
            tokenizer=tokenizer,
            max_model_len=placement.max_model_len,
            stream=stream,
            verifier=verifier,
            shadows=shadows,
            rollouts=rollouts,
            learner=learner,
            sync=sync,
            collector=collector,
            policy_update=PolicyUpdate(recipe, learner),
            colocated=placement.colocated,
            log=MetricsLog(folder.metrics),
            board=board(),
        )


def _read(
    recipe: Recipe, rows: Sequence[Row] | None, model: str
) -> tuple[Any, Placement, PromptStream]:
    """The tokenizer, the layout that the model gets, and the prompts."""
    tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)
    placement = place(recipe, model)
    rows = load_rows(recipe.data) if rows is None else rows
    check_lengths(recipe, rows, tokenizer, placement.max_model_len)
    stream = PromptStream(
        rows,
        recipe.data,
        tokenizer,
        seed=recipe.seed,
        longest_prompt=placement.max_model_len - recipe.rollout.max_tokens,
    )
    return tokenizer, placement, stream


def _verifier_pool(recipe: Recipe) -> VerifierPool:
    verifier = recipe.verifier
    return VerifierPool(
        verifier.name,
        verifier.options,
        workers=verifier.workers,
        timeout_s=verifier.timeout_s,
        plugins=tuple(recipe.plugin_names()),
    )


def _announce(recipe: Recipe, model: str, placement: Placement, screen: Screen) -> None:
    """What is started. The last look at the model before that: UserError for one which had to be
    downloaded first and is found out now, or which the adapters do not fit."""
    if recipe.model.path is not None and not looks_local(recipe.model.path):
        examine(recipe, model, recipe.model.path)
    if recipe.learner.lora is not None:
        trust = recipe.model.trust_remote_code
        screen.note(f"LoRA: {describe_lora(recipe.learner.lora, model, trust)}")
    _tell_room(recipe, screen)
    screen.note("starting vLLM and DeepSpeed")
    _tell_shares(recipe, placement, screen)


def _tell_room(recipe: Recipe, screen: Screen) -> None:
    """Raises UserError where no checkpoint would fit on the disk."""
    room = room_for_checkpoints(recipe)
    if room is not None:
        room.check()
    for warning in (room and room.lack, shared_memory_warning(recipe)):
        if warning:
            screen.warn(warning)


def _tell_shares(recipe: Recipe, placement: Placement, screen: Screen) -> None:
    """On shared GPUs, who takes what."""
    if placement.engine_share is None:
        if recipe.learner.offload_weights:
            screen.note("learner.offload_weights changes nothing here: no GPU is shared")
        return
    share = recipe.rollout.engine.get("gpu_memory_utilization", placement.engine_share)
    weights = "rest in host memory" if recipe.learner.offload_weights else "stay beside it"
    screen.note(
        f"engines and learner share GPUs: vLLM takes {share} of each "
        f"(rollout.engine.gpu_memory_utilization), the learner's weights {weights}"
    )


def _canary(stream: PromptStream, most: int) -> list[int]:
    """Tokens of the first prompts of the data, without moving the cursor. `most`: how many fit."""
    first = stream.take(_CANARY_PROMPTS)
    stream.put_back(first)
    tokens = [token for prompt in first for token in prompt.token_ids]
    return (tokens * 2)[: max(2, min(_CANARY_TOKENS, most))]
