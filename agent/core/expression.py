"""The mapping's `math`: one variable, arithmetic and a fixed list of functions.

Rules:
 * The text is parsed once, when the mapping is loaded; what runs per value is compiled code that
   can reach nothing but the functions below (no names, attributes, calls, strings or loops).
 * `^` is power, as in KUKSA's mappings, and so is `**`; powers are computed in floating point, so
   no text can make a number of a million digits.
 * What has no finite real result (division by zero, a domain error, an overflow), or one beyond
   the doubles, is no value: None.
"""

import ast
import math
import sys
from collections.abc import Callable

MAX_LENGTH = 512  # Characters; the longest of KUKSA's own is 20.

Number = int | float


class ExpressionError(ValueError):
    """The text is not an expression that we evaluate; the message says why."""


def _power(base: Number, exponent: Number) -> float:
    return math.pow(base, exponent)


_FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int | None]] = {
    # name: (function, fewest arguments, most arguments)
    "abs": (abs, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "cos": (math.cos, 1, 1),
    "exp": (math.exp, 1, 1),
    "floor": (math.floor, 1, 1),
    "log": (math.log, 1, 1),
    "log10": (math.log10, 1, 1),
    "max": (max, 2, None),
    "min": (min, 2, None),
    "pow": (_power, 2, 2),
    "round": (round, 1, 1),
    "sin": (math.sin, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "tan": (math.tan, 1, 1),
    "trunc": (math.trunc, 1, 1),
}
_CONSTANTS = {"PI": math.pi, "E": math.e}
_BIGGEST = sys.float_info.max
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod)


def compile_expression(text: str) -> Callable[[Number], Number | None]:
    """Return the function that evaluates `text` for one x.

    Args:
        text: Such as "floor(abs(x/5))"; x is the value in the DBC's unit.

    Returns:
        A pure function; it returns None where the result is not a finite real number.

    Raises:
        ExpressionError: The text uses more than arithmetic on x, numbers and the listed functions.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"{len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
        body = _checked(tree.body)
        code = compile(ast.fix_missing_locations(ast.Expression(body)), "<math>", "eval")
    except ExpressionError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as exc:
        raise ExpressionError("not an arithmetic expression") from exc
    scope: dict[str, object] = {name: entry[0] for name, entry in _FUNCTIONS.items()}
    scope |= _CONSTANTS | {"__builtins__": {}}

    def evaluate(x: Number) -> Number | None:
        try:
            result = eval(code, scope, {"x": x})  # noqa: S307 - the tree holds arithmetic only, see _checked
        except (ArithmeticError, ValueError):
            return None
        # Comparing an int with a float needs no conversion, so a long int cannot overflow here; it
        # would in the next step that computes with floats.
        return result if -_BIGGEST <= result <= _BIGGEST else None

    return evaluate


def _checked(node: ast.expr) -> ast.expr:
    """Return `node` with powers made calls; raise where anything else than arithmetic is in it."""
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            return node
        case ast.Name(id=name) if name == "x" or name in _CONSTANTS:
            return node
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return ast.UnaryOp(node.op, _checked(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            power = ast.Name("pow", ast.Load())
            return ast.Call(power, [_checked(left), _checked(right)], [])
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            return ast.BinOp(_checked(left), op, _checked(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            _, fewest, most = _FUNCTIONS[name]
            if len(args) < fewest or (most is not None and len(args) > most):
                raise ExpressionError(f"{name}() with {len(args)} arguments")
            return ast.Call(ast.Name(name, ast.Load()), [_checked(arg) for arg in args], [])
        case ast.Call(func=ast.Name(id=name)):
            known = ", ".join(sorted(_FUNCTIONS))
            raise ExpressionError(f"{name}() is not known; there are {known}")
        case ast.Name(id=name):
            raise ExpressionError(f"{name} is not known; the value is called x")
    raise ExpressionError("only arithmetic on x is allowed")
