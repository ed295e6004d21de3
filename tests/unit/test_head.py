"""The tiled head against log_softmax over whole logits in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.learner.head import LogprobHead
from grpo.learner.head_kernels import TILES, Tile, tiled
from tests.examples import examples

few = examples(50)
KINDS = ["logprobs", "entropy", "both"]
# Of the 7 tokens by 5 entries of `case`: one logit at a time; 2 by 2 and 3 by 4, which divide
# neither side; whole tokens; whole columns; everything at once; room for more.
CUTS = [Tile(1, 1), Tile(4, 2), Tile(12, 4), Tile(11, 5), Tile(7, 1), Tile(35, 5), Tile(1000, 99)]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tile], None]:
    return lambda tile: monkeypatch.setitem(TILES, "cpu", tile)


@dataclass(frozen=True)
class Measured:
    """Outputs, and the gradients of `loss` in the hidden states and the weight."""

    logprobs_T: Tensor
    entropy_T: Tensor
    hidden_TH: Tensor
    weight_VH: Tensor

    @property
    def parts(self) -> list[Tensor]:
        return [self.logprobs_T, self.entropy_T, self.hidden_TH, self.weight_VH]


@dataclass(frozen=True)
class Case:
    """Inputs, and what a loss adds up: by_logprob_T * logprob + by_entropy_T * entropy."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets_T: Tensor
    temperature: float
    by_logprob_T: Tensor | None
    by_entropy_T: Tensor | None

    def measured(self, logprobs_T: Tensor, entropy_T: Tensor, inputs: list[Tensor]) -> Measured:
        loss = torch.zeros(())
        if self.by_logprob_T is not None:
            loss = loss + (self.by_logprob_T * logprobs_T).sum()
        if self.by_entropy_T is not None:
            loss = loss + (self.by_entropy_T * entropy_T).sum()
        gradients = torch.autograd.grad(loss, inputs)
        return Measured(logprobs_T.detach(), entropy_T.detach(), *gradients)

    def scoring(self) -> LogprobHead:
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = nn.Parameter(self.weight_VH)
        return LogprobHead.replacing(linear)

    def by_head(self) -> Measured:
        scoring, hidden_TH = self.scoring(), self.hidden_TH.detach().requires_grad_()
        logprobs_T, entropy_T = scoring(hidden_TH, self.targets_T, self.temperature)
        return self.measured(logprobs_T, entropy_T, [hidden_TH, scoring.weight])

    def by_log_softmax(self) -> Measured:
        hidden_TH = self.hidden_TH.double().requires_grad_()
        weight_VH = self.weight_VH.double().requires_grad_()
        all_logprobs_TV = (hidden_TH @ weight_VH.T / self.temperature).log_softmax(-1)
        logprobs_T = all_logprobs_TV.gather(1, self.targets_T[:, None])[:, 0]
        entropy_T = -(all_logprobs_TV.exp() * all_logprobs_TV).sum(-1)
        return self.measured(logprobs_T, entropy_T, [hidden_TH, weight_VH])


def case(
    kind: str,
    temperature: float,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int, int] = (7, 5, 3),
) -> Case:
    """`shape` is tokens, vocabulary, hidden size."""
    tokens, vocabulary, hidden = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return Case(
        hidden_TH=normal(tokens, hidden).to(dtype),
        weight_VH=normal(vocabulary, hidden).to(dtype),
        targets_T=torch.randint(0, vocabulary, (tokens,), generator=generator),
        temperature=temperature,
        by_logprob_T=normal(tokens) if kind in ("logprobs", "both") else None,
        by_entropy_T=normal(tokens) if kind in ("entropy", "both") else None,
    )


def assert_agree(mine: Measured, exact: Measured, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    for left, right in zip(mine.parts, exact.parts, strict=True):
        torch.testing.assert_close(left.double(), right, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("tile", CUTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_outputs_and_gradients_are_those_of_log_softmax(
    kind: str, temperature: float, tile: Tile, dtype: torch.dtype, bound: float, cut: Any
):
    cut(tile)
    drawn = case(kind, temperature, dtype=dtype)
    assert_agree(drawn.by_head(), drawn.by_log_softmax(), rtol=bound, atol=bound)


@few
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(0, 9), st.integers(1, 11), st.integers(1, 4)),
    temperature=st.floats(0.3, 3),
    tile=st.builds(Tile, st.integers(1, 120), st.integers(1, 12)),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_any_shape_in_any_cut_gives_the_same(
    seed: int,
    shape: tuple[int, int, int],
    temperature: float,
    tile: Tile,
    kind: str,
    scale: float,
):
    """No token, one token and a vocabulary of one among them."""
    drawn = case(kind, temperature, seed, torch.float64, shape)
    drawn = replace(drawn, weight_VH=drawn.weight_VH * scale)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TILES, "cpu", tile)
        assert_agree(drawn.by_head(), drawn.by_log_softmax(), rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("tile", [Tile(4, 2), Tile(1000, 99)])
def test_gradients_are_those_of_finite_differences(tile: Tile, cut: Any):
    cut(tile)
    drawn = case("both", 0.7, dtype=torch.float64)
    inputs = (drawn.hidden_TH.requires_grad_(), drawn.weight_VH.requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: tiled(h, w, drawn.targets_T, 0.7, True), inputs)


def test_targets_at_the_edges_of_tiles_are_found_once(cut: Any):
    """Tiles of columns 0-2, 3-5 and 6. Equal logits: every logprob is log(1/7), and the weight's
    gradient of entry v is (targets at v) - 5/7."""
    cut(Tile(6, 3))
    scoring = LogprobHead.replacing(nn.Linear(1, 7, bias=False, dtype=torch.float64))
    scoring.weight = nn.Parameter(torch.zeros(7, 1, dtype=torch.float64))
    hidden_TH = torch.ones(5, 1, dtype=torch.float64)
    logprobs_T, entropy_T = scoring(hidden_TH, torch.tensor([0, 2, 3, 5, 6]), 1.0)
    logprobs_T.sum().backward()
    assert logprobs_T.tolist() == pytest.approx([-math.log(7)] * 5)
    assert entropy_T.tolist() == pytest.approx([math.log(7)] * 5)
    assert scoring.weight.grad is not None
    counts = [1, 0, 1, 1, 0, 1, 1]
    assert scoring.weight.grad[:, 0].tolist() == pytest.approx([n - 5 / 7 for n in counts])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_size_that_changes_before_backward_does_no_harm(kind: str, cut: Any):
    drawn = case(kind, 0.8)
    cut(Tile(4, 2))
    scoring, hidden_TH = drawn.scoring(), drawn.hidden_TH.clone().requires_grad_()
    logprobs_T, entropy_T = scoring(hidden_TH, drawn.targets_T, drawn.temperature)
    cut(Tile(9, 3))
    mine = drawn.measured(logprobs_T, entropy_T, [hidden_TH, scoring.weight])
    assert_agree(mine, drawn.by_log_softmax())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_token_by_hand(temperature: float):
    """p = (3/4, 1/4), token 1 chosen: log(1/4), and (-3/4, 3/4) / temperature in the logits."""
    scoring = LogprobHead.replacing(nn.Linear(1, 2, bias=False))
    scoring.weight = nn.Parameter(torch.tensor([[temperature * math.log(3)], [0.0]]))
    logprobs_T, entropy_T = scoring(torch.ones(1, 1), torch.tensor([1]), temperature)
    logprobs_T.sum().backward()
    assert logprobs_T.tolist() == pytest.approx([math.log(0.25)], rel=1e-6)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert entropy_T.tolist() == pytest.approx([entropy], rel=1e-6)
    assert scoring.weight.grad is not None
    expected = [-0.75 / temperature, 0.75 / temperature]
    assert scoring.weight.grad[:, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_tied_to_the_embedding_gets_both_gradients(kind: str, cut: Any):
    cut(Tile(4, 2))
    drawn = case(kind, 0.9)
    inputs_T = (drawn.targets_T + 1) % 5
    embedding = nn.Embedding(5, 3)
    embedding.weight = nn.Parameter(drawn.weight_VH.clone())
    scoring = LogprobHead.replacing(nn.Linear(3, 5, bias=False))
    scoring.weight = embedding.weight
    logprobs_T, entropy_T = scoring(embedding(inputs_T), drawn.targets_T, drawn.temperature)
    mine = drawn.measured(logprobs_T, entropy_T, [embedding.weight, embedding.weight])

    weight_VH = drawn.weight_VH.double().requires_grad_()
    all_logprobs_TV = (weight_VH[inputs_T] @ weight_VH.T / drawn.temperature).log_softmax(-1)
    logprobs_T = all_logprobs_TV.gather(1, drawn.targets_T[:, None])[:, 0]
    entropy_T = -(all_logprobs_TV.exp() * all_logprobs_TV).sum(-1)
    assert_agree(mine, drawn.measured(logprobs_T, entropy_T, [weight_VH, weight_VH]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_nothing_but_the_gradients(kind: str, dtype: torch.dtype, cut: Any):
    """Logprobs and entropies are those of the given numbers to float32's 1e-5, where logits rounded
    to bfloat16 would be 0.02 off; each gradient is the exact one to one rounding, 2^-8."""
    cut(Tile(12, 4))
    drawn = case(kind, 0.6, dtype=dtype, shape=(7, 9, 32))
    mine, exact = drawn.by_head(), drawn.by_log_softmax()
    assert mine.logprobs_T.dtype == mine.entropy_T.dtype == torch.float32
    assert mine.hidden_TH.dtype == mine.weight_VH.dtype == dtype
    for left, right in zip(mine.parts[:2], exact.parts[:2], strict=True):
        torch.testing.assert_close(left.double(), right, rtol=1e-5, atol=2e-5)
    for left, right in zip(mine.parts[2:], exact.parts[2:], strict=True):
        torch.testing.assert_close(left.double(), right, rtol=2**-8, atol=1e-4)


def test_the_weight_gradient_of_many_tiles_is_summed_in_float32(cut: Any):
    """Gradients of 256 and sixteen times 1/2 are 264. A sum kept in bfloat16, whose steps are 2
    from 256 on, would stay at 256."""
    cut(Tile(1, 1))
    scoring = LogprobHead.replacing(nn.Linear(1, 2, bias=False, dtype=torch.bfloat16))
    scoring.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    hidden_TH = torch.tensor([[512.0], *[[1.0]] * 16], dtype=torch.bfloat16)
    logprobs_T, _ = scoring(hidden_TH, torch.zeros(17, dtype=torch.int64), 1.0)
    logprobs_T.sum().backward()
    assert scoring.weight.grad is not None
    assert scoring.weight.grad[:, 0].tolist() == [264, -264]


def test_the_hidden_gradient_of_many_tiles_is_summed_in_float32(cut: Any):
    """Entries of weight 256 and 512 times 1/2, all equally likely, the first half chosen: a loss of
    -513 logprob pulls with 256 - 512 / 2 + 511 / 2 = 255.5, in bfloat16 256. A sum kept in
    bfloat16, whose steps are 1 from 128 on, would stay at 128."""
    cut(Tile(1, 1))
    scoring = LogprobHead.replacing(nn.Linear(2, 513, bias=False, dtype=torch.bfloat16))
    weight_VH = torch.zeros(513, 2, dtype=torch.bfloat16)
    weight_VH[0, 1], weight_VH[1:, 1] = 256, 0.5
    scoring.weight = nn.Parameter(weight_VH)
    hidden_TH = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    logprobs_T, _ = scoring(hidden_TH, torch.tensor([1]), 1.0)
    (-513 * logprobs_T).sum().backward()
    assert hidden_TH.grad is not None
    assert hidden_TH.grad[0].tolist() == [0, 256]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [Tile(1, 1), Tile(1000, 99)])
def test_logits_of_thousands_leave_no_nan(kind: str, tile: Tile, cut: Any):
    cut(tile)
    drawn = case(kind, 1e-3)
    mine = drawn.by_head()
    assert all(bool(torch.isfinite(values).all()) for values in mine.parts)
    exact = drawn.by_log_softmax()
    torch.testing.assert_close(mine.logprobs_T.double(), exact.logprobs_T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mine.entropy_T.double(), exact.entropy_T, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_matter(dtype: torch.dtype, cut: Any):
    """Every second token, a transposed weight, targets and gradients read backwards."""
    cut(Tile(4, 2))
    drawn = case("both", 0.6, dtype=dtype)
    strided = replace(
        drawn,
        hidden_TH=drawn.hidden_TH.repeat_interleave(2, 0)[::2],
        weight_VH=drawn.weight_VH.T.contiguous().T,
        targets_T=drawn.targets_T.repeat_interleave(3)[::3],
    )
    given_ = [strided.hidden_TH, strided.weight_VH, strided.targets_T]
    assert not any(tensor.is_contiguous() for tensor in given_)
    for mine, plain in zip(strided.by_head().parts, drawn.by_head().parts, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6)


@dataclass
class Seen(TorchDispatchMode):
    """Names and sizes of what every operation in the block gave."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, torch.dtype]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, Tensor):
                self.sizes.append((part.numel(), part.dtype))
        return made

    def products(self) -> int:
        return sum(name in ("mm", "addmm", "addmm_") for name in self.names)


def largest(seen: Seen, dtype: torch.dtype) -> int:
    return max(size for size, found in seen.sizes if found == dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(kind: str, cut: Any):
    """64 tokens by 96 entries are 6,144 logits. Nothing is larger than a tile of 384, or than the
    weight and its gradient, 96 x 4."""
    cut(Tile(384, 24))
    drawn = case(kind, 0.9, shape=(64, 96, 4))
    with Seen() as mine:
        drawn.by_head()
    assert largest(mine, torch.float32) == 384
    with Seen() as naive:
        drawn.by_log_softmax()
    assert largest(naive, torch.float64) == 64 * 96


def test_a_weights_gradient_in_bfloat16_is_never_held_whole_in_float32(cut: Any):
    """96 x 32 entries in bfloat16; in float32 no more than a tile, 8 x 24 logits, its part of the
    gradient, 24 x 32, and the hidden states, 8 x 32."""
    cut(Tile(192, 24))
    drawn = case("both", 0.9, dtype=torch.bfloat16, shape=(8, 96, 32))
    with Seen() as mine:
        drawn.by_head()
    assert largest(mine, torch.bfloat16) == 96 * 32
    assert largest(mine, torch.float32) == 24 * 32


def test_an_entropy_costs_no_product_and_backward_nothing_where_no_loss_uses_it(cut: Any):
    """Four tiles: four products forward, twelve backward."""
    cut(Tile(4 * 3, 3))
    drawn = case("logprobs", 1.0)
    runs: list[tuple[Tensor, Seen, Seen]] = []
    for entropy in (True, False):
        scoring, hidden_TH = drawn.scoring(), drawn.hidden_TH.clone().requires_grad_()
        with Seen() as forward:
            logprobs_T, entropy_T = scoring(hidden_TH, drawn.targets_T, 1.0, entropy=entropy)
        assert (entropy_T is not None) == entropy
        with Seen() as backward:
            logprobs_T.sum().backward()
        assert (forward.products(), backward.products()) == (4, 12)
        runs.append((logprobs_T, forward, backward))
    (with_T, with_forward, with_backward), (without_T, forward, backward) = runs
    assert torch.equal(with_T, without_T)
    kept = [name for name in with_backward.names if name != "detach"]  # of the entropies, unpacked
    assert kept == [name for name in backward.names if name != "detach"]
    assert len(with_forward.names) > len(forward.names)


def test_only_what_needs_a_gradient_gets_one_and_costs_its_product():
    """A frozen body: hidden states without a graph. A frozen head: only they."""
    drawn = case("both", 1.0)
    for frozen in ("hidden", "weight"):
        scoring, hidden_TH = drawn.scoring(), drawn.hidden_TH.clone()
        hidden_TH.requires_grad_(frozen == "weight")
        scoring.weight.requires_grad_(frozen == "hidden")
        logprobs_T, entropy_T = scoring(hidden_TH, drawn.targets_T, 1.0)
        with Seen() as backward:
            (logprobs_T.sum() + entropy_T.sum()).backward()
        assert backward.products() == 2
        assert (hidden_TH.grad is None) == (frozen == "hidden")
        assert (scoring.weight.grad is None) == (frozen == "weight")


def test_no_token_leaves_zero_gradients():
    drawn = case("both", 0.7, shape=(0, 5, 3))
    mine = drawn.by_head()
    assert mine.logprobs_T.shape == mine.entropy_T.shape == (0,)
    assert mine.hidden_TH.shape == (0, 3) and mine.weight_VH.tolist() == [[0.0] * 3] * 5


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_vocabulary_is_refused(target: int):
    drawn = case("logprobs", 1.0)
    drawn.targets_T[3] = target
    with pytest.raises(AssertionError, match="outside the vocabulary of 5"):
        drawn.by_head()


def test_a_small_vocabulary_gets_more_tokens_instead():
    rows, columns = Tile(4096, 64).cuts(tokens=1000, vocabulary=10)
    assert rows == [slice(0, 409), slice(409, 818), slice(818, 1000)]
    assert columns == [slice(0, 10)]


def test_the_head_keeps_the_module_and_its_weight():
    linear = nn.Linear(3, 5, bias=False)
    weight = linear.weight
    scoring = LogprobHead.replacing(linear)
    assert scoring is linear and scoring.weight is weight
    assert [name for name, _ in scoring.named_parameters()] == ["weight"]


def test_a_head_with_a_bias_is_refused():
    with pytest.raises(AssertionError, match="bias"):
        LogprobHead.replacing(nn.Linear(3, 5))


def test_a_frozen_weight_gets_no_gradient_and_none_is_held(cut: Any):
    """60 tokens by 96 entries in tiles of 360: the weight, 96 x 40, would have the only gradient of
    3,840 numbers. That of the hidden states is what it is beside a trained weight."""
    cut(Tile(360, 24))
    drawn = case("both", 0.9, shape=(60, 96, 40))
    hidden_TH = drawn.hidden_TH.clone().requires_grad_()
    scoring = drawn.scoring().requires_grad_(False)
    with Seen() as seen:
        logprobs_T, entropy_T = scoring(hidden_TH, drawn.targets_T, drawn.temperature)
        (
            (drawn.by_logprob_T * logprobs_T).sum() + (drawn.by_entropy_T * entropy_T).sum()
        ).backward()
    assert scoring.weight.grad is None
    assert hidden_TH.grad is not None
    torch.testing.assert_close(hidden_TH.grad, drawn.by_head().hidden_TH, rtol=0, atol=0)
    assert largest(seen, torch.float32) == 60 * 40
    with Seen() as trained:
        drawn.by_head()
    assert largest(trained, torch.float32) == 96 * 40
