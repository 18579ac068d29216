"""Small faults that are put into a module on purpose: where they fit, and what they change.

Rules:
 * A mutant changes one place: an operator, a condition, a number, a name in SQL, a statement.
 * Not touched: annotations, docstrings, decorators, fields and members of classes, `assert`, and
   what is said to people (arguments of `raise`, of the log, and text put together): tests need not
   pin words.
 * Lines keep their numbers, so the test that runs a line is known before it is changed.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Pow: ast.Mult,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
_SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b|^ [A-Z]{2}")
_SQL_SWAPS = (
    *((r"<=", "<"), (r">=", ">"), (r"<(?![=>])", "<="), (r"(?<!<)>(?!=)", ">=")),
    *((r"(?<![<>!])=", "!="), (r"!=", "="), (r"\bAND\b", "OR"), (r"\bOR(?= [^RI])", "AND")),
    *((r"\+ 1", "+ 2"), (r"\bmin\(", "max("), (r"\bmax\(", "min("), (r" DESC\b", "")),
    *((r"OR REPLACE", "OR IGNORE"), (r"OR IGNORE", "OR REPLACE"), (r"\bNOT IN\b", "IN")),
    *((r"ORDER BY (\w+)(?! DESC|\w)", r"ORDER BY \1 DESC"), (r"DO UPDATE", "DO NOTHING --")),
)
_SAID_BY = frozenset({"debug", "info", "warning", "error", "exception"})


@dataclass(frozen=True, slots=True, eq=False)
class Mutant:
    """One fault.

    Attributes:
        name: What is assigned, where the fault lies in a constant of the module.
        lines: Of the changed expression or statement.
        before: As it stands in the module.
    """

    parent: ast.AST
    member: str
    index: int | None
    old: ast.AST
    new: ast.AST
    name: str | None
    in_function: bool
    lines: range

    @property
    def before(self) -> str:
        """The changed place as it is."""
        return _short(self.old)

    @property
    def after(self) -> str:
        """The changed place as it becomes."""
        return _short(self.new)


class Source:
    """A module's text, and the faults that can be put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.mutants = tuple(_walk(self.tree, name=None, in_function=False))

    def compiled(self, mutant: Mutant) -> CodeType:
        """Return the module's code with the fault in it."""
        _put(mutant, mutant.new)
        try:
            return compile(ast.fix_missing_locations(self.tree), str(self.path), "exec")
        finally:
            _put(mutant, mutant.old)

    def uses(self, name: str) -> frozenset[int]:
        """Return the lines that name a constant."""
        return frozenset(
            node.lineno
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        )


def _put(mutant: Mutant, node: ast.AST) -> None:
    if mutant.index is None:
        setattr(mutant.parent, mutant.member, node)
    else:
        getattr(mutant.parent, mutant.member)[mutant.index] = node


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 110 else f"{text[:107]}..."


def _walk(node: ast.AST, *, name: str | None, in_function: bool) -> Iterator[Mutant]:
    for member, value in ast.iter_fields(node):
        if member in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or _is_left_alone(child, node):
                continue
            inner = _assigned(child) if not in_function else None
            where = (inner or name, in_function)
            for old_holder, spot, at, new in _faults(node, member, index, child):
                old = getattr(old_holder, spot) if at is None else getattr(old_holder, spot)[at]
                ast.copy_location(new, old)
                lines = range(old.lineno, (old.end_lineno or old.lineno) + 1)
                yield Mutant(old_holder, spot, at, old, new, *where, lines)
            is_body = isinstance(node, ast.FunctionDef | ast.Lambda) and member == "body"
            yield from _walk(child, name=inner or name, in_function=in_function or is_body)


def _assigned(node: ast.AST) -> str | None:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def _is_left_alone(  # noqa: PLR0911 - one answer for each kind of node
    node: ast.AST, parent: ast.AST
) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Assert() | ast.JoinedStr() | ast.Import():
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]) | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attr))) if attr in _SAID_BY:
            return True
        case ast.Call() if isinstance(parent, ast.Raise):
            return True
        case ast.Assign() | ast.AnnAssign() if isinstance(parent, ast.ClassDef):
            return True
        case ast.Call(func=ast.Name(id="TypeVar")):
            return True
        case ast.keyword(arg="hint" | "frozen" | "slots" | "eq" | "order"):
            return True
    return not hasattr(node, "lineno") and not isinstance(
        node, ast.arguments | ast.comprehension | ast.match_case | ast.withitem
    )


def _faults(  # noqa: C901, PLR0912 - one case for each kind of node
    parent: ast.AST, member: str, index: int | None, node: ast.AST
) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield each fault of a node itself: (holder, member, index, what stands there instead)."""

    def instead(new: ast.AST) -> tuple[ast.AST, str, int | None, ast.AST]:
        return parent, member, index, new

    match node:
        case ast.Compare(left=left, ops=ops, comparators=right):
            for at, op in enumerate(ops):
                if (other := _COMPARE.get(type(op))) is not None:
                    yield instead(ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], right))
        case ast.BoolOp(op=op, values=values):
            yield instead(ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values))
            for at in range(len(values)):
                rest = [*values[:at], *values[at + 1 :]]
                yield instead(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield instead(operand)
        case ast.BinOp(left=first, op=operator, right=second):
            if (swapped := _BINARY.get(type(operator))) is not None:
                yield instead(ast.BinOp(first, swapped(), second))
        case ast.AugAssign(target=target, op=operator, value=value):
            if (swapped := _BINARY.get(type(operator))) is not None:
                yield instead(ast.AugAssign(target, swapped(), value))
            yield instead(ast.Pass())
        case ast.Constant(value=value):
            for changed in _constants(value):
                yield instead(ast.Constant(changed))
        case ast.Call(func=ast.Name(id=called)) if called in _CALLS:
            new = ast.Call(ast.Name(_CALLS[called], ast.Load()), node.args, node.keywords)
            if called != "sorted" or not node.keywords:
                yield instead(new)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield instead(ast.IfExp(test, orelse, body))
        case ast.If() | ast.While():
            yield node, "test", None, ast.UnaryOp(ast.Not(), node.test)
        case ast.comprehension(ifs=ifs):
            for at, test in enumerate(ifs):
                yield node, "ifs", at, ast.UnaryOp(ast.Not(), test)
        case ast.Return(value=ast.expr() as value) if not _is_plain(value):
            yield instead(ast.Return(ast.Constant(None)))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield instead(ast.Pass())
        case ast.Continue():
            yield instead(ast.Break())
        case ast.Break():
            yield instead(ast.Continue())
        case ast.Assign(targets=[ast.Attribute()], value=value) if not _is_none(value):
            yield instead(ast.Pass())


def _is_plain(node: ast.AST) -> bool:
    """Whether it is None, or False, which is as good as None to whoever asks."""
    return isinstance(node, ast.Constant) and not node.value


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, str) and _SQL.search(value):
        for pattern, swap in _SQL_SWAPS:
            for found in re.finditer(pattern, value):
                changed = value[: found.start()] + found.expand(swap) + value[found.end() :]
                if changed != value:
                    yield changed
    elif isinstance(value, str):
        yield f"XX{value}"
