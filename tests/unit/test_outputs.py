"""Printed and returned values against those that a test expects."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.verify.outputs import same_output
from grpo.verify.sandbox.calls import same_value
from tests.examples import examples

TOLERANCE = 1e-6  # verifier code's own


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3", "3\n", True),
        ("  1 2 \n3\n\n", "1 2\n3", True),
        ("1.0", "1", True),
        ("1 2.50", "1.0 2.5", True),
        ("1e3", "1000", True),
        ("YES", "yes", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("0.3333333", "0.3333334", False),
        ("50000000000000000", "50000000000000001", False),
        ("1 x", "1.0 x", False),
        ("x  1", "x 1", False),
        ("NaN", "1", False),
        ("sNaN", "1", False),
        ("1e999999999", "1", False),
        ("", "0", False),
        ("", "", True),
    ],
)
def test_without_tolerance_output_is_compared_as_live_code_bench_does(
    printed: str, expected: str, same: bool
):
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.333333", "0.333333333333"),
        ("0.3333333333333333 2", "0.333333333333 2"),
        ("0.30000000000000004", "0.3"),
        ("Case #1: 0.333333", "Case #1: 0.33333334"),
        ("[0.333333, 1]", "[0.3333333333, 1]"),
        ("(0.5, -0.25)", "(0.50000001, -0.25)"),
        ("5", "4.9999999"),
        ("-1e-17", "0.0"),
        ("123456789.12", "123456789.13"),  # 1e-9 of it
        ("1e-07", "0.0000001"),
    ],
)
def test_decimals_may_be_off_a_little(printed: str, expected: str):
    assert same_output(printed, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.33333", "0.333333333333"),
        ("0.333335", "0.333333333333"),
        # Integers are exact, whatever is printed.
        ("4.9999999", "5"),
        ("1000000.0000001", "1000000"),
        ("999999999999", "1000000000000"),
        ("Case #2: 0.5", "Case #1: 0.5"),
        ("x 1.0", "x 1"),
        ("[0.5, 2]", "[0.5, 1]"),
        # A large decimal is not any number near it.
        ("1234567", "1234567.89"),
        ("0", "0.0000001"),
        ("0.00000001", "0.0000001"),
        ("-0.0000001", "0.0000001"),
        ("nan", "0.5"),
        ("inf", "0.5"),
        ("1e400", "0.5"),
        ("1e-400", "0.0000001"),
        ("1_000.5", "1000.5"),
        ("٠.٥", "0.5"),
        ("0.5 0.5", "0.5"),
        ("0.5", "0.5 0.5"),
        ("", "0.5"),
        ("0.5.", "0.5"),
        ("0.5x", "0.50x"),
        ("1.2.3", "1.20.3"),
        ("\0", "x 0.5"),
    ],
)
def test_the_tolerance_pays_nothing_else(printed: str, expected: str):
    assert not same_output(printed, expected, TOLERANCE)


@examples(50)
@given(st.lists(st.lists(st.integers(-(10**30), 10**30), min_size=1), min_size=1))
def test_numbers_are_equal_however_they_are_written_and_never_when_one_is_off(
    table: list[list[int]],
):
    expected = "\n".join(" ".join(map(str, row)) for row in table)
    written = "\n".join("  ".join(f"{number}.00" for number in row) + " " for row in table)
    assert same_output(written + "\n\n", expected, TOLERANCE)
    table[-1][-1] += 1
    off = "\n".join(" ".join(map(str, row)) for row in table)
    assert not same_output(off, expected, TOLERANCE)


@examples(200)
@given(
    st.floats(-1e9, 1e9, allow_nan=False).filter(lambda number: "." in repr(number)),
    st.floats(allow_nan=True),
)
def test_what_is_paid_for_a_decimal_is_near_it_printed_or_returned(theirs: float, ours: float):
    printed = same_output(repr(ours), repr(theirs), TOLERANCE)
    assert printed == same_value(ours, theirs, TOLERANCE)
    error = abs(Decimal(ours) - Decimal(theirs)) if math.isfinite(ours) else Decimal("inf")
    assert not printed or error <= Decimal("1.000001e-6") * max(1, abs(Decimal(theirs)) / 1000)
    if "e" not in repr(theirs) and abs(theirs) < 1000:
        assert same_output(f"{theirs:.9f}", repr(theirs), TOLERANCE)


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        (0.1 + 0.2, 0.3, True),
        ([0.1 + 0.2, 1], [0.3, 1], True),
        ([[0.1 + 0.2], {"a": 0.7999999999}], [[0.3], {"a": 0.8}], True),
        ([(1, 2)], [[1, 2]], True),
        (((1, (2,)),), [[1, [2]]], True),
        ({"a": (1,)}, {"a": [1]}, True),
        (2, 2.0, True),
        (2.0, 2, True),
        pytest.param(10**400, 10**400, True, id="equal"),
        (2.0000001, 2, False),
        (True, 0.9999999, False),
        (0.5, "0.5", False),
        ("0.5", 0.5, False),
        (math.nan, 0.5, False),
        (math.nan, math.nan, False),
        (math.inf, 1.7976931348623157e308, False),
        (math.inf, math.inf, True),
        pytest.param(10**400, 1.7976931348623157e308, False, id="huge"),
        (0.0, 1e-9, False),
        (5e-324, 1e-9, False),
        ([1, 2, 3], [1, 2], False),
        ({1, 2}, [1, 2], False),
        ("ab", ["a", "b"], False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({1: 0.5}, {"1": 0.5}, False),
        (None, 0.0, False),
        ([], 0.0, False),
    ],
)
def test_returned_values_are_equal_but_for_tuples_and_the_last_digits_of_floats(
    returned: object, expected: object, same: bool
):
    assert same_value(returned, expected, TOLERANCE) is same


def test_without_tolerance_floats_are_exact():
    assert not same_value(0.1 + 0.2, 0.3, 0.0)
    long = "0." + "3" * 40
    assert not same_output(long + "1", long + "2")
