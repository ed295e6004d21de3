"""A checkpoint goes on with another number of learner ranks, as if they had always been so many."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from grpo.batch.cut import cut
from grpo.errors import UserError, WorkerFault
from grpo.fleet import cluster as cluster_module
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.learner.shards import file_name
from grpo.learner.spec import LearnerSpec
from grpo.store.disk import is_full
from tests.e2e import whole_rank
from tests.e2e.conftest import learner_spec
from tests.e2e.steps import batch, trained

LORA = {"rank": 5, "alpha": 12, "targets": ["q_proj", "v_proj", "down_proj"]}
RANKS = (1, 2, 3)


@dataclass(frozen=True)
class Kind:
    model: str
    optimizer: str
    lora: bool = False
    dtype: str = "float32"

    def spec(self, models: dict[str, Path]) -> LearnerSpec:
        # A large epsilon keeps Adam from amplifying rounding noise on gradients near zero.
        learner = {"optimizer": self.optimizer, "eps": 1e-2, "grad_clip": 0.5}
        if self.lora:
            learner["lora"] = LORA
        path = models[self.model]
        model = {"path": str(path), "dtype": self.dtype, "gradient_checkpointing": False}
        return learner_spec(path, learner, model=model)


KINDS = {
    "tied-adamw": Kind("tied", "adamw"),
    "untied-sgd": Kind("untied", "sgd"),
    "tied-adamw-lora": Kind("tied", "adamw", lora=True),
}


@contextmanager
def started(
    cluster: Cluster, spec: LearnerSpec, ranks: tuple[int, ...], timeout_s: float = 300
) -> Iterator[dict[int, Learner]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "_make_learner_rank", whole_rank.make_rank)
        groups = {n: Learner(cluster.learner_ranks(spec, n), timeout_s) for n in ranks}
    yield groups
    for group in groups.values():
        for worker in group.workers:
            worker.kill()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, id=name, marks=() if name == "tied-adamw" else pytest.mark.full)
        for name, kind in KINDS.items()
    ],
)
def learners(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path]
) -> Iterator[dict[int, Learner]]:
    with started(cluster, request.param.spec(models), RANKS) as groups:
        yield groups


def whole(group: Learner) -> dict[str, torch.Tensor]:
    return group.everywhere("whole")[0]


def step(group: Learner, number: int, budget: int = 200) -> None:
    group.load([cut(batch("balanced", {}), len(group.workers), budget)])
    group.step(0, number)


def after(group: Learner, folder: Path) -> dict[str, torch.Tensor]:
    """What trained, as it is exported."""
    group.everywhere("export", folder / "hf")
    group.everywhere("export_adapter", folder / "adapter")
    return trained(folder)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_the_first_step_with_another_number_of_ranks_is_that_with_the_old_one(
    learners: dict[int, Learner], then: int, now: int, tmp_path: Path
):
    """Before it masters, moments and weights are the same bits, as DeepSpeed itself gathers them.
    Its micro-batches are of another size, too."""
    writer, reader = learners[then], learners[now]
    for number in range(2):
        step(writer, number)
    writer.save(tmp_path / "saved")
    saved = whole(writer)
    assert any(tensor.numel() % 3 for tensor in saved.values()), "nothing is padded"
    step(writer, 2)
    expected = after(writer, tmp_path / "then")
    reader.restore(tmp_path / "saved")
    assert_same(whole(reader), saved)
    before = after(reader, tmp_path / "before")
    step(reader, 2, budget=90)
    found = after(reader, tmp_path / "now")
    assert min(float((found[n] - before[n]).abs().max()) for n in found) > 1e-6, "it did not move"
    worst = max(float((found[n] - expected[n]).abs().max()) for n in expected)
    print(f"{then} to {now} ranks: {worst:.1e} apart at most")
    assert worst <= 1e-6


@pytest.mark.parametrize("ranks", [1, 2])
def test_with_as_many_ranks_the_step_after_is_bit_equal(
    learners: dict[int, Learner], ranks: int, tmp_path: Path
):
    group = learners[ranks]
    step(group, 0)
    group.save(tmp_path / "saved")
    step(group, 1)
    expected = whole(group)
    group.restore(tmp_path / "saved")
    step(group, 1)
    assert_same(whole(group), expected)


def test_the_sub_groups_of_another_number_of_ranks_are_others(learners: dict[int, Learner]):
    """So that the tests above take parameters from one into another."""
    groups = [group.everywhere("num_groups")[0] for group in learners.values()]
    assert groups[0] > groups[-1]


def test_states_that_rest_in_host_memory_are_saved_and_restored(
    learners: dict[int, Learner], tmp_path: Path
):
    group = learners[2]
    step(group, 0)
    saved = whole(group)
    group.everywhere("offload")
    group.everywhere("rest", True)
    group.save(tmp_path)
    group.everywhere("reload")
    step(group, 1)
    group.everywhere("offload")
    group.everywhere("rest", True)
    group.restore(tmp_path)
    assert_same(whole(group), saved)
    step(group, 1)


@pytest.mark.parametrize("learners", [KINDS["tied-adamw"]], indirect=True, ids=["tied-adamw"])
def test_a_rank_that_cannot_write_keeps_no_other_waiting(
    learners: dict[int, Learner], tmp_path: Path
):
    """The disk of one is full. A barrier would hold the other rank, and with it the save after,
    until the deadline."""
    group = Learner(learners[2].workers, timeout_s=60)
    (tmp_path / "bad" / "zero").mkdir(parents=True)
    path = tmp_path / "bad" / "zero" / file_name(1, 2)
    path.symlink_to("/dev/full")
    with pytest.raises(WorkerFault, match=r"learner-. failed in save: OSError: .*No space") as full:
        group.save(tmp_path / "bad")
    assert str(path) in str(full.value)
    assert is_full(full.value, tmp_path), "the run waits for room"
    (tmp_path / "worse" / "hf" / "config.json").mkdir(parents=True)
    with pytest.raises(WorkerFault, match="failed in export"):
        group.save(tmp_path / "worse")
    group.save(tmp_path / "good")
    saved = whole(group)
    group.restore(tmp_path / "good")
    assert_same(whole(group), saved)


@pytest.mark.parametrize("learners", [KINDS["tied-adamw"]], indirect=True, ids=["tied-adamw"])
def test_files_that_do_not_fit_are_refused_in_the_driver_and_the_learner_goes_on(
    learners: dict[int, Learner], tmp_path: Path
):
    group = learners[2]
    group.save(tmp_path)
    saved = whole(group)
    path = tmp_path / "zero" / file_name(1, 2)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=f"{path} is damaged or cut short"):
        group.restore(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        group.restore(tmp_path)
    path.write_bytes(content)
    assert_same(whole(group), saved)
    group.restore(tmp_path)


@pytest.mark.parametrize(
    "learners",
    [KINDS["tied-adamw"], KINDS["tied-adamw-lora"]],
    indirect=True,
    ids=["tied-adamw", "tied-adamw-lora"],
)
def test_a_checkpoint_of_deepspeeds_own_form_resumes_with_as_many_ranks_alone(
    learners: dict[int, Learner], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    group = learners[2]
    step(group, 0)
    saved = whole(group)
    group.everywhere("save_as_deepspeed_does", tmp_path)
    step(group, 1)
    with caplog.at_level("INFO", logger="grpo"):
        group.restore(tmp_path)
    assert "in an older form" in caplog.text
    assert_same(whole(group), saved)
    with pytest.raises(UserError, match=r"learner\.ranks is 3, but .*: set learner\.ranks=2"):
        learners[3].restore(tmp_path)


def test_in_bfloat16_masters_and_weights_are_the_same_bits_with_other_ranks(
    cluster: Cluster, models: dict[str, Path], tmp_path: Path
):
    """The masters have more digits than the weights, and both come back."""
    kind = Kind("tied", "adamw", dtype="bfloat16")
    with started(cluster, kind.spec(models), (1, 2)) as groups:
        step(groups[1], 0)
        groups[1].save(tmp_path)
        saved = whole(groups[1])
        groups[2].restore(tmp_path)
        assert_same(whole(groups[2]), saved)
    finer = [n for n, t in saved.items() if n.endswith("master") and (t != t.bfloat16()).any()]
    assert finer, "the masters are no finer than the weights"
