"""Factors between sampler and learner against numbers worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.correction import CORRECTIONS
from grpo.errors import UserError
from tests.examples import examples

few = examples(50)
fewer = examples(20)
every_correction = pytest.mark.parametrize("name", list(CORRECTIONS))
OPEN: dict[str, Any] = {"low": 1e-300, "high": 1e300}
LIMIT = math.exp(20)  # log ratios are kept within -20 and 20


def factors(
    name: str, ratios: list[list[float]], dtype: torch.dtype = torch.float64, **options: Any
) -> Tensor:
    """[T] for one list of ratios pi_old / pi_sampler per response."""
    flat = [ratio for row in ratios for ratio in row]
    lengths_N = torch.tensor([len(row) for row in ratios], dtype=torch.int64)
    row_T = torch.arange(len(ratios)).repeat_interleave(lengths_N)
    old_T = torch.tensor(flat, dtype=dtype).log()
    return CORRECTIONS.bind(name, options)(old_T, torch.zeros_like(old_T), row_T)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # The responses' ratios: (4, 0.1, 1) and (1.5, 6).
        ("truncated_token", {}, [2, 0.1, 1, 1.5, 2]),
        ("truncated_token", {"high": 5}, [4, 0.1, 1, 1.5, 5]),
        ("masked_token", {}, [4, 0, 1, 1.5, 0]),
        ("masked_token", {"low": 0.05, "high": 1.5}, [0, 0.1, 1, 1.5, 0]),
        # Their products: 0.4 and 9. Their geometric means: 0.4^(1/3) = 0.737 and 3.
        ("truncated_sequence", {}, [0.4, 0.4, 0.4, 2, 2]),
        ("truncated_sequence", {"high": 10}, [0.4, 0.4, 0.4, 9, 9]),
        ("truncated_sequence", {"mean": True}, [*[0.4 ** (1 / 3)] * 3, 2, 2]),
        ("truncated_sequence", {"mean": True, "high": 10}, [*[0.4 ** (1 / 3)] * 3, 3, 3]),
        ("masked_sequence", {}, [0, 0, 0, 0, 0]),
        ("masked_sequence", {"low": 0.3}, [0.4, 0.4, 0.4, 0, 0]),
        ("masked_sequence", {"high": 9.5}, [0, 0, 0, 9, 9]),
        ("masked_sequence", {"mean": True}, [*[0.4 ** (1 / 3)] * 3, 0, 0]),
        ("masked_sequence", {"mean": True, "low": 0.8, "high": 4}, [0, 0, 0, 3, 3]),
    ],
)
def test_factors_by_hand(name: str, options: dict[str, Any], expected: list[float]):
    factor_T = factors(name, [[4, 0.1, 1], [1.5, 6]], **options)
    assert factor_T.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["masked_token", "masked_sequence"])
@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.5, 2.0, [True, True]),  # a ratio at a bound is inside
        (math.nextafter(0.5, 1), 2.0, [False, True]),
        (0.5, math.nextafter(2.0, 0), [True, False]),
    ],
)
def test_the_bounds_are_inside(name: str, low: float, high: float, kept: list[bool]):
    ratios = [0.5, 2.0]
    factor_T = factors(name, [[ratio] for ratio in ratios], low=low, high=high)
    assert factor_T.tolist() == [r if keep else 0 for r, keep in zip(ratios, kept, strict=True)]


@every_correction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_the_policy_every_factor_is_one(name: str, dtype: torch.dtype):
    factor_T = factors(name, [[1.0, 1.0, 1.0], [1.0]], dtype)
    assert factor_T.tolist() == [1, 1, 1, 1]
    assert factor_T.dtype == dtype


@every_correction
def test_no_gradient_passes_through_a_factor(name: str):
    old_T = torch.zeros(2, requires_grad=True)
    sampler_T = torch.full((2,), 0.1, requires_grad=True)
    factor_T = CORRECTIONS[name](old_T, sampler_T, torch.tensor([0, 0]))
    assert not factor_T.requires_grad
    assert float(factor_T[0]) < 1  # pi_old over pi_sampler, not the other way round


@every_correction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "log_ratios", [[1000.0, 1000.0], [-1000.0, -1000.0], [1000.0, -1000.0], [math.inf, 0.0]]
)
def test_a_ratio_without_bounds_stays_finite(
    name: str, dtype: torch.dtype, log_ratios: list[float]
):
    old_T = torch.tensor([*log_ratios, 0.0], dtype=dtype)
    factor_T = CORRECTIONS[name](old_T, torch.zeros_like(old_T), torch.tensor([0, 0, 1]))
    assert bool(torch.isfinite(factor_T).all()) and bool((factor_T >= 0).all())
    assert float(factor_T[-1]) == 1  # the response beside it is not touched


@pytest.mark.parametrize("name", ["truncated_token", "truncated_sequence"])
def test_log_ratios_are_kept_within_twenty(name: str):
    factor_T = factors(name, [[1e100], [1e-100]], high=1e300)
    assert factor_T.tolist() == pytest.approx([LIMIT, 1 / LIMIT], rel=1e-12)


def test_a_mean_is_taken_before_the_limit():
    """Two tokens of log ratio 30 and -30: the response is on the policy."""
    factor_T = factors("truncated_sequence", [[math.exp(30), math.exp(-30)]], mean=True)
    assert factor_T.tolist() == pytest.approx([1, 1], rel=1e-9)


@every_correction
def test_no_tokens_give_no_factors(name: str):
    nothing = torch.zeros(0)
    assert CORRECTIONS[name](nothing, nothing, torch.zeros(0, dtype=torch.int64)).tolist() == []


ratios = st.floats(0.05, 20)
rows = st.lists(st.lists(ratios, min_size=1, max_size=4), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", ["truncated", "masked"])
@pytest.mark.parametrize("mean", [False, True])
@given(drawn=st.lists(ratios, min_size=1, max_size=6))
@fewer
def test_responses_of_one_token_make_sequence_and_token_agree(
    kind: str, mean: bool, drawn: list[float]
):
    alone = [[ratio] for ratio in drawn]
    bounds: dict[str, Any] = {"high": 3.0} if kind == "truncated" else {"low": 0.4, "high": 3.0}
    token_T = factors(f"{kind}_token", alone, **bounds)
    sequence_T = factors(f"{kind}_sequence", alone, mean=mean, **bounds)
    assert sequence_T.tolist() == pytest.approx(token_T.tolist(), rel=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
@given(drawn=rows)
@fewer
def test_inside_its_bounds_a_mask_is_a_truncation(level: str, drawn: list[list[float]]):
    masked_T = factors(f"masked_{level}", drawn, low=0.5, high=2.0)
    truncated_T = factors(f"truncated_{level}", drawn, high=2.0)
    free_T = factors(f"masked_{level}", drawn, **OPEN)
    inside_T = (free_T >= 0.5) & (free_T <= 2.0)
    assert masked_T.tolist() == torch.where(inside_T, truncated_T, 0.0).tolist()
    assert truncated_T.tolist() == free_T.clamp(max=2.0).tolist()


@few
@given(rows)
def test_without_bounds_sequence_factors_are_products_and_geometric_means(
    drawn: list[list[float]],
):
    product_T = factors("truncated_sequence", drawn, high=1e300)
    mean_T = factors("truncated_sequence", drawn, high=1e300, mean=True)
    products = [min(LIMIT, max(1 / LIMIT, math.prod(row))) for row in drawn for _ in row]
    means = [math.prod(row) ** (1 / len(row)) for row in drawn for _ in row]
    assert product_T.tolist() == pytest.approx(products, rel=1e-9)
    assert mean_T.tolist() == pytest.approx(means, rel=1e-9)


@every_correction
@given(drawn=rows)
@fewer
def test_a_response_is_corrected_the_same_alone_and_in_company(name: str, drawn: list[list[float]]):
    """I26: a cut into micro-batches between responses changes no factor."""
    alone = [factor for row in drawn for factor in factors(name, [row]).tolist()]
    assert factors(name, drawn).tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: CORRECTIONS["truncated_tokens"], "did you mean 'truncated_token'"),
        (lambda: CORRECTIONS.bind("masked_token", {"hihg": 2}), "did you mean 'high'"),
        (lambda: CORRECTIONS.bind("masked_token", {"low": 0}), "option 'low'.*got 0"),
        (lambda: CORRECTIONS.bind("truncated_token", {"mean": True}), "no option 'mean'"),
    ],
)
def test_a_wrong_name_or_option_is_named(read: Callable[[], object], message: str):
    with pytest.raises(UserError, match=message):
        read()
