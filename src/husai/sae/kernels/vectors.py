"""Vector operations that numba does not find by itself: 32 numbers at a time, as LLVM writes them.

Numba checks before each loop whether its arrays overlap, which takes as long as a short loop, and
it has no masks. These do neither check nor wrap an index: the caller's arrays must hold all 32.
They are functions of the compiled code alone; Python cannot call them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 32
"""Numbers that one operation takes."""

_INT, _FLOAT = ir.IntType(32), ir.FloatType()
_FLAGS = ("reassoc", "contract", "arcp", "nsz")


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any, kind: Any) -> Any:
    """Pointer to the 32 numbers of an array that begin at flat index ``at``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), ir.VectorType(kind, LANES).as_pointer())


def _spread(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of 32 times the same number."""
    undefined = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(_INT, 0))
    places = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    return builder.shuffle_vector(one, undefined, places)


@intrinsic
def add_and_mask_above(typing: Any, values: Any, at: Any, add: Any, first: Any, level: Any) -> Any:
    """``values[at + b] += add[first + b]``; set bit b of a uint32 where that is above ``level``.

    The sums are compared by their bits, as integers.
    """
    signature = types.uint32(values, types.int64, add, types.int64, types.int32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], _FLOAT)
        more = _place(context, builder, signature.args[2], args[2], args[3], _FLOAT)
        total = builder.fadd(builder.load(place, align=4), builder.load(more, align=4))
        builder.store(total, place, align=4)
        bits = builder.bitcast(total, ir.VectorType(_INT, LANES))
        return builder.bitcast(
            builder.icmp_signed(">", bits, _spread(builder, args[4], _INT)), _INT
        )

    return signature, code


@intrinsic
def mask_above_each(typing: Any, bits: Any, at: Any, levels: Any, first: Any) -> Any:
    """Set bit b of a uint32 where ``bits[at + b] > levels[first + b]``, all of them int32."""
    signature = types.uint32(bits, types.int64, levels, types.int64)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, limits = (
            builder.load(
                _place(context, builder, signature.args[n], args[n], args[n + 1], _INT), align=4
            )
            for n in (0, 2)
        )
        return builder.bitcast(builder.icmp_signed(">", values, limits), _INT)

    return signature, code


@intrinsic
def count_above(typing: Any, bits: Any, at: Any, level: Any) -> Any:
    """How many of ``bits[at + b]`` are above ``level``, all of them int32."""
    signature = types.int64(bits, types.int64, types.int32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = builder.load(
            _place(context, builder, signature.args[0], args[0], args[1], _INT), align=4
        )
        above = builder.icmp_signed(">", values, _spread(builder, args[2], _INT))
        return builder.zext(builder.ctpop(builder.bitcast(above, _INT)), ir.IntType(64))

    return signature, code


@intrinsic
def lowest_bit(typing: Any, mask: Any) -> Any:
    """Number of the lowest bit that is set in a uint32 that is not 0."""
    signature = types.int64(types.uint32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(found, ir.IntType(64))

    return signature, code


def _add(n: int, context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """``out[at + c] += Σ scale_i · values[first_i + c]`` of n rows, with ``c`` up to 31."""
    place = _place(context, builder, signature.args[0], args[0], args[1], _FLOAT)
    total = builder.load(place, align=4)
    for i in range(n):
        row = _place(context, builder, signature.args[2], args[2], args[3 + i], _FLOAT)
        scale = _spread(builder, args[3 + n + i], _FLOAT)
        product = builder.fmul(builder.load(row, align=4), scale, flags=_FLAGS)
        total = builder.fadd(total, product, flags=_FLAGS)
    builder.store(total, place, align=4)
    return context.get_dummy_value()


@intrinsic
def add_one(typing: Any, out: Any, at: Any, values: Any, first: Any, scale: Any) -> Any:
    """``out[at + c] += scale · values[first + c]`` for ``c`` up to 31, by flat indices."""
    signature = types.void(out, types.int64, values, types.int64, types.float32)
    return signature, lambda *arguments: _add(1, *arguments)


@intrinsic
def add_four(
    typing: Any,
    out: Any,
    at: Any,
    values: Any,
    first_0: Any,
    first_1: Any,
    first_2: Any,
    first_3: Any,
    scale_0: Any,
    scale_1: Any,
    scale_2: Any,
    scale_3: Any,
) -> Any:
    """Do :func:`add_one` with four rows of ``values`` at once."""
    integer, number = types.int64, types.float32
    signature = types.void(out, integer, values, *[integer] * 4, *[number] * 4)
    return signature, lambda *arguments: _add(4, *arguments)
