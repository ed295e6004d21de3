"""A real model between sampler and learner: its template, its end tokens, its rows without tokens,
and two updates in each form that a run may take."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.algo import AGGREGATORS
from grpo.batch.build import make_batch
from grpo.batch.cut import cut
from grpo.config.recipe import SyncConfig
from grpo.data import PromptStream, load_rows
from grpo.fleet.canary import Apart, Bounds
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.weights import WeightSync
from grpo.rollout.engine import EngineSpec
from grpo.rollout.sampling import Sampling, group_seed
from grpo.types import Batch, Group, Prompt, Row
from tests.e2e import real
from tests.e2e.conftest import learner_spec, start_learner
from tests.e2e.real import END, ROWS, STOP, TOKENS, TURNS, TWIN
from tests.e2e.test_sync import scored

PROMPTS, SIBLINGS, MOST = 4, 4, 12
LORA = {"rank": 4, "alpha": 8}


@dataclass
class Trained:
    """A learner and an engine behind two updates, and what was seen on the way, by the version of
    the weights. `apart`: of the tokens of all answers, between the engine that sampled them and the
    learner. `fixed`: the learner's logprobs of `canary`; `served`: the engine's in the end."""

    learner: Learner
    engine: RolloutPool
    dtype: str
    canary: list[int]
    folder: Path  # the last checkpoint
    sampled: list[list[Group]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    apart: list[Apart] = field(default_factory=list)
    canaries: list[Apart] = field(default_factory=list)
    fixed: list[list[float]] = field(default_factory=list)
    served: list[float] = field(default_factory=list)


def start_rank(
    cluster: Cluster, model: Path, dtype: str = "float32", lora: dict[str, int] | None = None
) -> Learner:
    spec = learner_spec(
        model,
        {"lr": 2e-5} if lora is None else {"lr": 1e-3, "lora": lora},
        model={"path": str(model), "dtype": dtype, "gradient_checkpointing": False},
    )
    threads = len(os.sched_getaffinity(0))  # engine and learner take turns
    return start_learner(cluster, replace(spec, threads=threads, bucket_bytes=64 << 20), 1)


@contextmanager
def engine_of(
    cluster: Cluster, model: Path, dtype: str = "float32", **extra: Any
) -> Iterator[RolloutPool]:
    spec = EngineSpec(str(model), dtype, 0, 1024, 1, "grpo_gloo", extra)
    pool = RolloutPool(cluster.rollout_workers(spec, 1, None), timeout_s=300)
    try:
        pool.start()
        yield pool
    finally:
        for worker in pool.workers:
            worker.kill()


@contextmanager
def two_steps(
    cluster: Cluster, learner: Learner, engine: RolloutPool, dtype: str, prompts: list[Prompt],
    folder: Path,
) -> Iterator[Trained]:  # fmt: skip
    """As a run takes them: sample, learn, send, check. The last weights are sampled with, too."""
    canary = [token for prompt in prompts for token in prompt.token_ids][:128]
    trained = Trained(learner, engine, dtype, canary, folder)
    config = SyncConfig(bucket_mib=64, timeout_s=300)  # the embedding alone is larger
    sync = WeightSync(learner, engine, config, "shm", canary)
    try:
        gather([worker.call("num_weight_bytes") for worker in learner.workers], 300)
        sync.open(cluster, tensor_parallel=1)
        for version in range(3):
            if version:
                learn(trained, version - 1)
            sync.update(version)
            trained.canaries.append(sync.check_canary(dtype))
            trained.fixed.append(learner.score(canary))
            trained.sampled.append(sample(engine, prompts[version : version + PROMPTS], version))
            trained.apart.append(apart(learner, trained.sampled[-1]))
        trained.served = engine.score(canary)[0]
        learner.save(folder)
        yield trained
    finally:
        for worker in learner.workers:
            worker.kill()


def sample(
    engine: RolloutPool, prompts: list[Prompt], step: int, count: int = SIBLINGS
) -> list[Group]:
    groups = engine.sample(prompts, count, Sampling(MOST), lambda p: group_seed(0, step, p.serial))
    return sorted(groups, key=lambda group: group.prompt.serial)


def learn(trained: Trained, number: int) -> None:
    batch = make_batch(
        scored(trained.sampled[-1]), AGGREGATORS.bind("balanced", {}), max_tokens=MOST
    )
    trained.batches.append(batch)
    trained.learner.load([cut(batch, 1, 1024)])
    assert trained.learner.step(0, number)["learn/skipped"] == 0


def apart(learner: Learner, groups: list[Group]) -> Apart:
    """Over every token of every answer."""
    ours: list[float] = []
    theirs: list[float] = []
    for group in groups:
        for response in group.responses:
            tokens = [*group.prompt.token_ids, *response.token_ids.tolist()]
            ours += learner.score(tokens)[len(group.prompt.token_ids) - 1 :]
            theirs += response.sampler_logprobs.tolist()
    return Apart.between(ours, theirs)


@pytest.fixture(scope="module")
def prompts(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """One for each chat of TURNS, in their order."""
    tokenizer = AutoTokenizer.from_pretrained(wide)
    config = real.data(tmp_path_factory.mktemp("chats"))
    stream = PromptStream(load_rows(config), config, tokenizer, seed=0, longest_prompt=999)
    return stream.take(len(TURNS))


@dataclass(frozen=True)
class Further:
    """What engine and learner say of two prompts, within which the assistant has begun. `ends`:
    answers, and `apart` of their tokens. `engine`, `learner`: logprobs of `tokens`, which are the
    first prompt and a row that the tokenizer has no token for."""

    ends: list[Group]
    apart: Apart
    tokens: list[int]
    engine: list[float]
    learner: list[float]


@pytest.fixture(scope="module")
def float32(cluster: Cluster, wide: Path, prompts: list[Prompt], tmp_path_factory):
    learner, folder = start_rank(cluster, wide), tmp_path_factory.mktemp("float32")
    with engine_of(cluster, wide, load_format="dummy") as engine:
        with two_steps(cluster, learner, engine, "float32", prompts, folder) as trained:
            found = further(trained, wide)  # then the learner's memory is free for another
        yield trained, found


def further(trained: Trained, model: Path) -> Further:
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = real.expected_text([("user", "What is the capital of France?")])
    texts = [f"{chat}The capital of France is Paris", f"{chat}The capital of France is Paris."]
    begun = [
        Prompt(serial, Row(str(serial), "", ""), tuple(tokenizer(text).input_ids))
        for serial, text in enumerate(texts)
    ]
    ends = sample(trained.engine, begun, step=9, count=16)
    tokens = [*begun[0].token_ids, TWIN]
    return Further(
        ends,
        apart(trained.learner, ends),
        tokens,
        trained.engine.score(tokens)[0],
        trained.learner.score(tokens),
    )


@pytest.fixture(scope="module")
def bfloat16(cluster: Cluster, wide: Path, prompts: list[Prompt], tmp_path_factory):
    learner, folder = start_rank(cluster, wide, "bfloat16"), tmp_path_factory.mktemp("bfloat16")
    with (
        engine_of(cluster, wide, "bfloat16", load_format="dummy") as engine,
        two_steps(cluster, learner, engine, "bfloat16", prompts, folder) as trained,
    ):
        pass
    return trained, None


@pytest.fixture(scope="module")
def lora(cluster: Cluster, wide: Path, prompts: list[Prompt], float32, tmp_path_factory):
    """The engine of `float32` gets the merged weights."""
    learner, folder = start_rank(cluster, wide, lora=LORA), tmp_path_factory.mktemp("lora")
    engine = float32[0].engine
    with two_steps(cluster, learner, engine, "float32", prompts, folder) as trained:
        pass
    return trained, None


KINDS = ["float32", pytest.param("bfloat16", marks=pytest.mark.full), "lora"]


@pytest.fixture(params=KINDS)
def trained(request: pytest.FixtureRequest) -> Trained:
    return request.getfixturevalue(request.param)[0]


def fault(found: Apart, dtype: str) -> str | None:
    """In bfloat16 by what a run allows; in float32 by a tenth of that."""
    return Bounds.of(dtype, 1e-4 if dtype == "float32" else None).fault(found)


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def test_a_chat_is_written_as_the_makers_of_the_model_write_it(wide: Path, prompts: list[Prompt]):
    """A system turn of theirs comes first where a row has none, and nothing comes before it. The
    padding stands at the end of each turn."""
    tokenizer = AutoTokenizer.from_pretrained(wide)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    for prompt, turns in zip(prompts, TURNS, strict=True):
        assert tokenizer.decode(prompt.token_ids) == real.expected_text(turns)
        assert prompt.token_ids[0] == 1  # <|im_start|>
        assert (prompt.token_ids.count(1), prompt.token_ids.count(END)) == (3, 2)


def test_sampler_and_learner_agree_on_every_token_before_and_after_each_update(trained: Trained):
    assert len(trained.apart) == 3
    for version, (groups, found) in enumerate(zip(trained.sampled, trained.apart, strict=True)):
        print(f"answers of version {version}: {found.largest:.1e}, mean {found.mean:.1e} nats")
        assert fault(found, trained.dtype) is None, f"version {version}: {found}"
        spans = {s.version for group in groups for r in group.responses for s in r.versions}
        assert spans == {version}
        assert sum(len(r.token_ids) for group in groups for r in group.responses) > 40


def test_two_updates_arrive_whole_and_change_the_policy(trained: Trained):
    assert len(trained.canaries) == 3
    for version, found in enumerate(trained.canaries):
        print(f"canary of version {version}: {found.largest:.1e}, mean {found.mean:.1e} nats")
        assert fault(found, trained.dtype) is None, f"version {version}: {found}"
    for before, after in zip(trained.fixed, trained.fixed[1:], strict=False):
        moved = float(np.abs(np.array(after) - np.array(before)).max())
        print(f"moved by {moved:.1e} nats")
        assert moved > 0.05, "else old weights would have passed for new ones"


def test_the_checkpoint_is_loaded_by_transformers_and_scores_as_the_engine_does(trained: Trained):
    model = loaded(trained.folder / "hf", trained.dtype)
    found = Apart.between(trained.served, real.logprobs_of(model, trained.canary))
    print(f"vLLM against transformers: {found.largest:.1e}, mean {found.mean:.1e} nats")
    assert fault(found, trained.dtype) is None, found


def test_the_checkpoint_has_the_tie_the_rows_and_the_end_tokens_of_the_model(trained: Trained):
    hf = trained.folder / "hf"
    model, tokenizer = loaded(hf), AutoTokenizer.from_pretrained(hf)
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert tuple(embedding.shape) == (ROWS, 576)
    assert [name for name in load_file(hf / "model.safetensors") if "lm_head" in name] == []
    assert model.config.tie_word_embeddings is True
    assert model.generation_config.eos_token_id == [END, STOP]
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (TOKENS, END, END)
    chat = [{"role": role, "content": text} for role, text in TURNS[0]]
    written = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert written == real.expected_text(TURNS[0])


def test_an_answer_ends_at_each_end_token_and_nowhere_else(float32):
    answers = [response for group in float32[1].ends for response in group.responses]
    last = []
    for answer in answers:
        *body, end = answer.token_ids.tolist()
        assert not {END, STOP} & set(body)
        assert (answer.finish_reason == "stop") == (end in (END, STOP))
        assert answer.finish_reason == "stop" or len(answer.token_ids) == MOST
        last.append(end)
    assert {END, STOP} <= set(last), f"the answers end in {sorted(set(last))}"


def test_the_learner_counts_and_scores_the_end_token(float32):
    """The end token is the padding, and the full stop is none of the tokenizer's end tokens."""
    groups = float32[1].ends
    assert fault(float32[1].apart, "float32") is None, float32[1].apart
    batch = make_batch(scored(groups), AGGREGATORS.bind("balanced", {}), max_tokens=MOST)
    micros = cut(batch, 1, 10**6)[0]
    answers = [response.token_ids.tolist() for group in groups for response in group.responses]
    assert batch.response_lengths_N.tolist() == [len(answer) for answer in answers]
    learned = torch.cat([micro.targets_T for micro in micros]).tolist()
    for token in (END, STOP):
        assert learned.count(token) == sum(answer[-1] == token for answer in answers) > 0
    assert len(learned) == sum(map(len, answers))


def test_a_row_without_a_token_is_sampled_scored_and_left_out_of_the_text(float32, wide: Path):
    trained, found = float32
    tokenizer = AutoTokenizer.from_pretrained(wide)
    answers = [response for group in found.ends for response in group.responses]
    assert any(TWIN in answer.token_ids for answer in answers)
    for answer in answers:
        known = [token for token in answer.token_ids.tolist() if token < TOKENS]
        assert answer.token_ids.max() < ROWS
        assert answer.text == tokenizer.decode(known, skip_special_tokens=True)
    by_transformers = real.logprobs_of(loaded(trained.folder / "hf"), found.tokens)
    assert by_transformers[-1] > -3, "it is likely, so that a sum without it would be another"
    for scores in (found.engine, found.learner):
        assert np.abs(np.array(scores) - np.array(by_transformers)).max() <= 1e-4


def test_vllm_loads_the_checkpoint_itself_and_scores_as_transformers_does(
    float32, cluster: Cluster
):
    trained, found = float32
    model = loaded(trained.folder / "hf")
    with engine_of(cluster, trained.folder / "hf") as engine:
        for tokens in (trained.canary, found.tokens):
            theirs = Apart.between(engine.score(tokens)[0], real.logprobs_of(model, tokens))
            print(f"vLLM against transformers: {theirs.largest:.1e} nats")
            assert theirs.largest <= 1e-4


def test_adapter_and_merged_weights_load_and_score_alike(lora, wide: Path):
    trained, _ = lora
    merged = real.logprobs_of(loaded(trained.folder / "hf"), trained.canary)
    base = real.logprobs_of(loaded(wide), trained.canary)
    adapted = PeftModel.from_pretrained(loaded(wide), str(trained.folder / "adapter"))
    by_peft = real.logprobs_of(adapted, trained.canary)
    print(f"adapter against merged: {Apart.between(merged, by_peft).largest:.1e} nats")
    assert Apart.between(merged, by_peft).largest <= 1e-4
    assert Apart.between(merged, base).largest > 0.05, "else the base would have passed for them"
    tensors = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30  # A and B, of seven matrices in each of 30 layers
    assert all(bool(tensor.any()) for tensor in tensors.values())
