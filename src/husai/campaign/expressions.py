"""Conditions on the fields of a random search, written as text; never executed as Python code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 200
"""Most characters of a condition."""

MAX_PARTS = 64
"""Most names, values and operators of a condition."""

MAX_NUMBER = 1e15
"""Largest number in a condition; whole numbers up to here are exact as floats too."""

Value = bool | str | int | float

ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ALLOWED = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.BoolOp, ast.And, ast.Or),
    *(ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Compare),
    *ARITHMETIC,
    *COMPARISONS,
)
"""All that a condition may have: no call, attribute, index, power or comprehension."""


@dataclass(frozen=True)
class Condition:
    """A condition that was parsed and has only allowed parts.

    Attributes
    ----------
    text
        The text as written.
    names
        The fields that it uses.
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition.

        It may have names, numbers, strings, True and False; ``== != < <= > >=``; ``and``, ``or``,
        ``not``; ``+ - * /``; parentheses.

        Raises
        ------
        ValueError
            When it is too long or has anything else; the message quotes it.
        """
        shown = repr(text if len(text) <= MAX_LENGTH else f"{text[:40]}…")
        if len(text) > MAX_LENGTH:
            raise ValueError(f"condition {shown}: {len(text)} characters; at most {MAX_LENGTH}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "it cannot be read"
            raise ValueError(f"condition {shown}: {reason}") from error
        nodes = list(ast.walk(tree))
        # only expressions count; the nodes of the operators themselves do not
        if sum(isinstance(node, ast.expr) for node in nodes) > MAX_PARTS:
            raise ValueError(f"condition {shown}: more than {MAX_PARTS} parts")
        for node in nodes:
            if not isinstance(node, ALLOWED):
                raise ValueError(
                    f"condition {shown}: {type(node).__name__} is not allowed; use names, numbers, "
                    "strings, comparisons, and, or, not, + - * /"
                )
            if isinstance(node, ast.Constant):
                _check_constant(node.value, shown)
        names = frozenset(node.id for node in nodes if isinstance(node, ast.Name))
        return cls(text, names, tree.body)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether the condition holds for these values of its names.

        Raises
        ------
        ValueError
            When a name has no value, a part has the wrong type, or a number cannot be computed.
        """
        try:
            return _truth(_evaluate(self._tree, values))
        except (TypeError, ZeroDivisionError, OverflowError, KeyError) as error:
            reason = f"{error} has no value" if isinstance(error, KeyError) else error
            raise ValueError(f"condition {self.text!r} with {dict(values)}: {reason}") from error


def _check_constant(value: object, shown: str) -> None:
    if isinstance(value, bool | str):
        return
    if not isinstance(value, int | float):
        raise ValueError(f"condition {shown}: {value!r} is not a number, a string, True or False")
    if not abs(value) <= MAX_NUMBER:
        raise ValueError(f"condition {shown}: a number is larger than {MAX_NUMBER:g}")


def _truth(value: Value) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _number(value: Value) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


def _evaluate(node: ast.expr, values: Mapping[str, Value]) -> Value:
    """Evaluate an allowed node; the recursion is at most as deep as a condition has parts."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, bool | str | int | float)
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BoolOp):
        parts = (_truth(_evaluate(part, values)) for part in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.UnaryOp):
        operand = _evaluate(node.operand, values)
        if isinstance(node.op, ast.Not):
            return not _truth(operand)
        return -_number(operand) if isinstance(node.op, ast.USub) else _number(operand)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        result: int | float = ARITHMETIC[type(node.op)](_number(left), _number(right))
        return result
    assert isinstance(node, ast.Compare)
    left = _evaluate(node.left, values)
    for comparison, comparator in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(comparator, values)
        if not isinstance(comparison, ast.Eq | ast.NotEq) and not (
            isinstance(left, str) and isinstance(right, str)
        ):
            left, right = _number(left), _number(right)
        if not COMPARISONS[type(comparison)](left, right):
            return False
        left = right
    return True
