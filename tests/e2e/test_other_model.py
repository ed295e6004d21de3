"""Any other pretrained model between sampler and learner, tried by hand:

    GRPO_OTHER_MODEL=.real/qwen2.5-coder-0.5b pytest tests/e2e/test_other_model.py -m full -s

names its folder. Of Qwen2.5-Coder-0.5B-Instruct it takes five minutes and 14 GB; what it said is in
docs/performance.md.
"""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from grpo.data import PromptStream, load_rows
from grpo.fleet.canary import Apart, Bounds
from grpo.fleet.cluster import Cluster
from grpo.rollout.stops import stop_tokens
from grpo.types import Prompt
from tests.e2e import real
from tests.e2e.real import TURNS
from tests.e2e.test_real_model import Trained, engine_of, fault, loaded, start_rank, two_steps

pytestmark = pytest.mark.full
VARIABLE = "GRPO_OTHER_MODEL"
# Prompts have tokens that a model would hardly sample: at -17 nats, as after such large steps, the
# sums of float32 differ by more than where it samples.
AS_IN_A_RUN = Bounds.of("float32", None)


@pytest.fixture(scope="module")
def model() -> Path:
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} names no model folder")
    return Path(os.environ[VARIABLE]).resolve()


@pytest.fixture(scope="module")
def prompts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    config = real.data(tmp_path_factory.mktemp("chats"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    return PromptStream(
        load_rows(config), config, tokenizer, seed=0, longest_prompt=999
    ).take(len(TURNS))  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    cluster: Cluster, model: Path, prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    learner, folder = start_rank(cluster, model), tmp_path_factory.mktemp("other")
    with (
        engine_of(cluster, model, load_format="dummy") as engine,
        two_steps(cluster, learner, engine, "float32", prompts, folder) as found,
    ):
        pass
    return found


def test_its_chats_are_written_by_its_own_template(model: Path, prompts: list[Prompt]):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for prompt, turns in zip(prompts, TURNS, strict=True):
        chat = [{"role": role, "content": text} for role, text in turns]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert list(prompt.token_ids) == tokenizer(text, add_special_tokens=False).input_ids


def test_sampler_and_learner_agree_before_and_after_each_update(trained: Trained):
    for version, found in enumerate(trained.apart):
        print(f"answers of version {version}: {found.largest:.1e}, mean {found.mean:.1e} nats")
        assert fault(found, "float32") is None, f"version {version}: {found}"
    for version, found in enumerate(trained.canaries):
        print(f"canary of version {version}: {found.largest:.1e}, mean {found.mean:.1e} nats")
        assert AS_IN_A_RUN.fault(found) is None, f"version {version}: {found}"
    assert len(trained.apart) == len(trained.canaries) == 3


def test_each_update_changes_the_policy(trained: Trained):
    for before, after in zip(trained.fixed, trained.fixed[1:], strict=False):
        moved = Apart.between(before, after)
        print(f"moved by {moved.largest:.1e} nats")
        assert moved.largest > 0.02, "else old weights would have passed for new ones"


def test_an_answer_ends_where_the_model_says_and_nowhere_else(trained: Trained, model: Path):
    ends = set(stop_tokens(str(model), AutoTokenizer.from_pretrained(model).eos_token_id))
    answers = [r for groups in trained.sampled for group in groups for r in group.responses]
    for answer in answers:
        *body, last = answer.token_ids.tolist()
        assert not ends & set(body)
        assert (answer.finish_reason == "stop") == (last in ends)
    assert any(answer.finish_reason == "stop" for answer in answers)


def test_its_checkpoint_is_loaded_and_scored_alike_by_transformers_and_vllm(
    trained: Trained, model: Path, cluster: Cluster
):
    hf = trained.folder / "hf"
    exported, before = loaded(hf), loaded(model)
    assert exported.config.tie_word_embeddings == before.config.tie_word_embeddings
    tied = exported.get_input_embeddings().weight is exported.get_output_embeddings().weight
    assert tied == exported.config.tie_word_embeddings
    assert exported.generation_config.eos_token_id == before.generation_config.eos_token_id
    by_transformers = real.logprobs_of(exported, trained.canary)
    with engine_of(cluster, hf) as engine:
        for name, scores in (
            ("the running engine", trained.served),
            ("vLLM on the checkpoint", engine.score(trained.canary)[0]),
        ):
            found = Apart.between(scores, by_transformers)
            print(f"{name} against transformers: {found.largest:.1e} nats at most")
            assert AS_IN_A_RUN.fault(found) is None, found
