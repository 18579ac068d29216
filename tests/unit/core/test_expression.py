"""The mapping's math against Python's own arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.expression import ExpressionError, compile_expression


@pytest.mark.parametrize(
    ("text", "x", "expected"),
    [
        ("x", 3, 3),
        ("floor(abs(x/5))", -12, 2),
        ("floor((x*40)-100)", 3.5, 40),
        ("(x+100)/40", 0, 2.5),
        ("x^2", 3, 9),
        ("x**2", 3, 9),
        ("-x^2", 3, -9),
        ("2*x^2", 3, 18),
        ("x % 7", 17, 3),
        ("min(x, 10, 3)", 5, 3),
        ("max(x, 10)", 5, 10),
        ("round(x)", 2.5, 2),
        ("sqrt(x)", 9, 3),
        ("PI*x", 2, 2 * math.pi),
        ("1e3*x", 2, 2000),
    ],
)
def test_an_expression_gives_what_arithmetic_gives(text: str, x: float, expected: float) -> None:
    assert compile_expression(text)(x) == expected


@pytest.mark.parametrize(
    ("text", "x"), [("1/x", 0), ("log(x)", -1), ("x^0.5", -4), ("9^9^x", 9), ("1e308*x", 100)]
)
def test_what_has_no_finite_real_result_is_no_value(text: str, x: float) -> None:
    assert compile_expression(text)(x) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "y", "x.real", "__import__('os')", "x if x else 1", "'a'*9", "[x]", "x and 1", "x == 1",
        "lambda: 1", "(x := 3)", "abs(x, x)", "abs()", "min(x)", "foo(x)", "abs(x=1)", "True + x",
        "1j*x", "x @ x", "x // 2", "~x", "f'{x}'", "x" * 600, "(" * 300 + "x" + ")" * 300,
    ],
)  # fmt: skip
def test_anything_but_arithmetic_on_x_is_refused_when_loaded(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_expression(text)


@given(st.text(alphabet="x0123456789.+-*/^%(), absfloor_'\"[]{}:=", max_size=60))
def test_no_text_does_anything_but_evaluate_or_be_refused(text: str) -> None:
    try:
        evaluate = compile_expression(text)
    except ExpressionError:
        return

    result = evaluate(1.5)

    assert result is None or -math.inf < result < math.inf
