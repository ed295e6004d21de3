"""Sampler and learner agree token by token, before and after weights travel; failures surface."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.batch.build import make_batch, with_advantages
from grpo.batch.cut import cut
from grpo.config.recipe import SyncConfig
from grpo.errors import RunError
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.weights import WeightSync
from grpo.rollout.outlook import SoFar
from grpo.rollout.sampling import Sampling, group_seed
from grpo.types import Group, Prompt, Row, ScoredGroup, Verdict
from tests.e2e.conftest import CANARY, Pair, start_pair


def sample(pair: Pair, step: int, prompts: int = 4, siblings: int = 4) -> list[Group]:
    asked = [
        Prompt(i, Row(str(i), "", ""), tuple(3 + (i * j) % 10 for j in range(1, 9)))
        for i in range(prompts)
    ]
    groups = list(
        pair.rollouts.sample(asked, siblings, Sampling(24), lambda p: group_seed(0, step, p.serial))
    )
    return sorted(groups, key=lambda group: group.prompt.serial)


def scored(groups: list[Group]) -> list[ScoredGroup]:
    """Rewards that differ inside every group, whatever was sampled."""
    judged = [
        ScoredGroup(g, tuple(Verdict(float(i % 2), "", "test") for i in range(len(g.responses))))
        for g in groups
    ]
    return with_advantages(judged, ADVANTAGES.bind("group_norm", {}))


def worst_difference(pair: Pair, groups: list[Group]) -> float:
    """Largest |sampler - learner| logprob over every token of every response."""
    worst = 0.0
    for group in groups:
        for response in group.responses:
            tokens = [*group.prompt.token_ids, *response.token_ids.tolist()]
            learner = pair.learner.score(tokens)[len(group.prompt.token_ids) - 1 :]
            worst = max(worst, float(np.abs(np.array(learner) - response.sampler_logprobs).max()))
    return worst


def test_more_prompt_tokens_than_one_pass_holds_are_sampled_all_the_same(pair: Pair):
    """60 different prompts of 200 tokens at once; vLLM's passes on CPU hold some thousands."""
    rng = np.random.default_rng(0)
    asked = [
        Prompt(n, Row(str(n), "", ""), tuple(rng.integers(3, 17, size=200).tolist()))
        for n in range(60)
    ]
    groups = list(pair.rollouts.sample(asked, 2, Sampling(4), lambda p: 1000 * p.serial))
    assert sorted(g.prompt.serial for g in groups) == list(range(60))
    assert worst_difference(pair, groups[:5]) <= 1e-4


def test_an_engine_says_how_far_its_groups_are_while_they_are_sampled(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    """What it says is never more than what comes back, and grows towards it."""
    monkeypatch.setattr("grpo.fleet.engines._ASK_S", 0.0)
    asked = [Prompt(n, Row(str(n), "", ""), (3 + n % 10, 5, 8)) for n in range(40)]
    stream = pair.rollouts.stream(8, Sampling(200), lambda p: 1000 * p.serial)
    stream.submit(asked)
    said: list[dict[int, SoFar]] = []
    groups: dict[int, Group] = {}
    while stream.running:
        groups |= {group.prompt.serial: group for group in stream.finished(0.02)}
        said.append(stream.so_far())
    whole = {
        serial: SoFar(len(group.responses), sum(len(r.token_ids) for r in group.responses))
        for serial, group in groups.items()
    }
    for told in said:
        for serial, so_far in told.items():
            assert so_far.ended <= whole[serial].ended
            assert so_far.tokens <= whole[serial].tokens
    some = [so_far for told in said for serial, so_far in told.items()]
    assert any(so_far.tokens > 0 for so_far in some), "tokens are seen before a group is whole"
    assert any(0 < so_far.ended < 8 for so_far in some), "and so are answers"


def test_sampler_and_learner_logprobs_agree_before_and_after_five_updates(pair: Pair):
    before = sample(pair, step=0)
    assert worst_difference(pair, before) <= 1e-4
    aggregate = AGGREGATORS.bind("balanced", {})
    ranks = len(pair.learner.workers)
    for version in range(1, 6):
        batch = make_batch(scored(sample(pair, step=version)), aggregate, max_tokens=24)
        pair.learner.load([cut(batch, ranks, 256)])
        pair.learner.step(0, version)
        pair.sync.update(version)
        pair.sync.check_canary("float32")
    after = sample(pair, step=0)
    assert worst_difference(pair, after) <= 1e-4
    moved = [
        abs(float(a.sampler_logprobs[0]) - float(b.sampler_logprobs[0]))
        for g, h in zip(before, after, strict=True)
        for a, b in zip(g.responses, h.responses, strict=True)
    ]
    assert max(moved) > 1e-2, "five updates at this rate move the policy"


def over(transport: str, pair: Pair, cluster: Cluster) -> WeightSync:
    """The pair's two sides, met once more by another transport."""
    sync = WeightSync(pair.learner, pair.rollouts, SyncConfig(timeout_s=60), transport, CANARY)
    sync.open(cluster, tensor_parallel=1)
    return sync


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_weights_arrive_whole_by_either_transport(pair: Pair, cluster: Cluster, transport: str):
    """In buckets so small that most layers are spread over several of them."""
    sync = over(transport, pair, cluster)
    before = pair.learner.score(CANARY)
    for version in (61, 62):
        batch = make_batch(
            scored(sample(pair, version)), AGGREGATORS.bind("token_mean", {}), max_tokens=24
        )
        pair.learner.load([cut(batch, len(pair.learner.workers), 256)])
        pair.learner.step(0, version)
        stats = sync.update(version)
        assert sync.check_canary("float32").largest <= 1e-4
        assert sum(stats.parts.values()) <= stats.seconds
    assert worst_difference(pair, sample(pair, step=63)) <= 1e-4
    moved = np.abs(np.array(before) - np.array(pair.learner.score(CANARY))).max()
    assert moved > 1e-3, "else old weights would have passed for new ones"
    pair.sync.open(cluster, tensor_parallel=1)


def test_every_token_knows_the_version_that_sampled_it(pair: Pair):
    pair.sync.update(41)
    spans = {span for group in sample(pair, step=9) for r in group.responses for span in r.versions}
    assert {span.version for span in spans} == {41}
    response = sample(pair, step=9)[0].responses[0]
    assert response.versions[0].start == 0
    assert response.versions[-1].end == len(response.token_ids)


def test_equal_seeds_give_equal_answers_and_siblings_differ(pair: Pair):
    first, again, other = sample(pair, 5), sample(pair, 5), sample(pair, 6)
    ids = [
        [r.token_ids.tolist() for g in groups for r in g.responses]
        for groups in (first, again, other)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert len({tuple(r.token_ids.tolist()) for r in first[0].responses}) > 1


def test_an_abort_brings_back_what_was_sampled_so_far(pair: Pair):
    prompt = Prompt(0, Row("0", "", ""), (3, 4, 5))
    call = pair.rollouts.workers[0].call("sample", prompt, 4, Sampling(240), 7)
    time.sleep(0.15)
    stopped = list(
        pair.rollouts.sample([prompt], 4, Sampling(240), lambda p: 99, stop=lambda: True)
    )
    assert stopped == [], "a stopped sampling yields no group"
    group = gather([call], 60)[0]
    assert all(len(r.token_ids) == len(r.sampler_logprobs) for r in group.responses)


def test_the_canary_notices_weights_that_did_not_arrive(pair: Pair):
    """The learner moves on and nothing is sent: the next check must fail."""
    batch = make_batch(scored(sample(pair, 3)), AGGREGATORS.bind("token_mean", {}), max_tokens=24)
    pair.learner.load([cut(batch, len(pair.learner.workers), 256)])
    pair.learner.step(0, 0)
    with pytest.raises(RunError, match="nats apart"):
        pair.sync.check_canary("float32")
    pair.sync.update(50)
    assert pair.sync.check_canary("float32").largest <= 1e-4


@pytest.fixture
def doomed(cluster: Cluster, models: dict[str, Path]):
    started = start_pair(cluster, models["tied"], ranks=1)
    yield started
    started.stop()


def test_a_worker_that_fails_in_mid_update_raises_in_the_driver_in_its_own_words(
    doomed: Pair, cluster: Cluster
):
    """The third parameter has a name that the model does not know."""
    sync = over("shm", doomed, cluster)
    sync._update_info["metas"][2]["name"] = "model.layers.0.no_such_weight"
    started = time.monotonic()
    with pytest.raises(RunError, match="no_such_weight"):
        sync.update(1)
    assert time.monotonic() - started < 60, "within the deadline"


def test_logprobs_come_from_the_temperature_that_was_sampled_with(pair: Pair):
    """At temperature 2 the sampled distribution is flatter: log p = log softmax(logits / 2)."""
    prompt = Prompt(0, Row("0", "", ""), (3, 4, 5, 6))
    group = next(pair.rollouts.sample([prompt], 1, Sampling(1, temperature=2.0), lambda p: 11))
    token = int(group.responses[0].token_ids[0])
    vocabulary = range(18)
    at_one = torch.tensor([pair.learner.score([3, 4, 5, 6, t])[-1] for t in vocabulary])
    expected = (at_one / 2).log_softmax(0)[token].item()
    assert abs(expected - float(group.responses[0].sampler_logprobs[0])) < 1e-4
