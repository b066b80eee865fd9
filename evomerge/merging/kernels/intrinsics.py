"""Typed loads, stores and a fused multiply-add for compiled kernels.

numba knows no bfloat16: such arrays come as their uint16 bits. `load` and `store` give kernels one
spelling for float32 and bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic  # type: ignore[untyped-decorator]
def fma(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """Return a * b + c with one rounding, as torch's `add_(b, alpha=a)` does."""
    signature = types.float32(types.float32, types.float32, types.float32)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return signature, generate


def _exponent(value: Any) -> tuple[Any, int, Any]:
    """Return integer type, bits of the exponent and numba type of a stored element's bits."""
    if value == types.uint16:
        return _I16, 0x7F80, types.uint16
    return _I32, 0x7F800000, types.uint32


@intrinsic  # type: ignore[untyped-decorator]
def magnitude(_context: Any, value: Any) -> Any:
    """Return the bits of a stored element, float32 or bfloat16, without the sign."""
    word, _, kind = _exponent(value)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        raw = args[0] if word is _I16 else builder.bitcast(args[0], word)
        ones = 0x7FFF if word is _I16 else 0x7FFFFFFF
        return builder.and_(raw, ir.Constant(word, ones))

    return kind(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def flipped(_context: Any, _value: Any, _bits: Any) -> Any:
    """Return a float32 with some of its bits flipped."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.xor(builder.bitcast(args[0], _I32), args[1]), _FLOAT)

    return types.float32(types.float32, types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def larger(_context: Any, a: Any, b: Any) -> Any:
    """Return the larger of two unsigned integers of one type, which numba would widen."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_unsigned(">", args[0], args[1]), args[0], args[1])

    return a(a, b), generate


@intrinsic  # type: ignore[untyped-decorator]
def is_finite(_context: Any, bits: Any) -> Any:
    """Return whether the magnitude of a finite element has these bits."""
    word, exponent, _ = _exponent(bits)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("<", args[0], ir.Constant(word, exponent))

    return types.boolean(bits), generate


@intrinsic  # type: ignore[untyped-decorator]
def _from_bfloat16(_context: Any, _value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _FLOAT)

    return types.float32(types.uint16), generate


def rounded_word(builder: Any, value: Any) -> Any:
    """Build a word whose upper half is a float32 as the nearest bfloat16, ties to even.

    NaN stays NaN; the lower half is anything.
    """
    bits = builder.bitcast(value, _I32)
    is_odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(bits, builder.add(is_odd, ir.Constant(_I32, 0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.select(is_nan, ir.Constant(_I32, 0x7FC00000), rounded)


@intrinsic  # type: ignore[untyped-decorator]
def _to_bfloat16(_context: Any, _value: Any) -> Any:
    """Round a float32 as `rounded_word` does."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = rounded_word(builder, args[0])
        return builder.trunc(builder.lshr(word, ir.Constant(_I32, 16)), _I16)

    return types.uint16(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def two_bytes(_context: Any, array: Any, _byte: Any) -> Any:
    """Return bytes b and b + 1 of an array as one uint16, at any alignment."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        start = builder.bitcast(data, ir.IntType(8).as_pointer())
        place = builder.gep(start, [args[1]])
        return builder.load(builder.bitcast(place, _I16.as_pointer()), align=1)

    return types.uint16(array, types.uint64), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def stack(_context: Any, rows: Any, row_bytes: Any) -> Any:
    """Return the address of len(rows) * row_bytes bytes on the stack, aligned to a cache line.

    The compiler sees that nothing else points there, and makes no checks for overlaps.

    Args:
        rows: A tuple; only its length counts.
        row_bytes: A constant.
    """
    n_bytes = len(rows) * row_bytes.literal_value

    def generate(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(ir.IntType(8), n_bytes))
        place.align = 64
        return builder.bitcast(place, ir.IntType(8).as_pointer())

    return types.voidptr(rows, row_bytes), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def stream(_context: Any, address: Any, row: Any, n_bytes: Any) -> Any:
    """Copy a row on the stack to an address, both aligned to cache lines, past the caches.

    Args:
        address: Where to.
        row: An array.
        n_bytes: A constant, a multiple of 64.
    """
    size = n_bytes.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        line = ir.VectorType(_I32, 16)
        source = builder.bitcast(data, line.as_pointer())
        target = builder.inttoptr(args[0], line.as_pointer())
        mark = builder.module.add_metadata([ir.Constant(_I32, 1)])
        for i in range(size // 64):
            at = ir.Constant(_I32, i)
            store = builder.store(
                builder.load(builder.gep(source, [at]), align=64),
                builder.gep(target, [at]),
                align=64,
            )
            store.set_metadata("nontemporal", mark)
        return context.get_dummy_value()

    return types.void(address, row, n_bytes), generate


@intrinsic  # type: ignore[untyped-decorator]
def fence(_context: Any) -> Any:
    """Wait until what was streamed is in memory."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def stored_at(_context: Any, address: Any, _i: Any, like: Any) -> Any:
    """Return element i of an array at an address, of the dtype of `like`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        place = builder.gep(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return builder.load(place, align=signature.return_type.bitwidth // 8)

    return like.dtype(address, types.uint64, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_context: Any, address: Any) -> Any:
    """Return an address as a pointer for `numba.carray`."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


def load(value: Any) -> Any:
    """Return a stored element as float32; compiled code only."""
    raise NotImplementedError


@overload(load, inline="always")  # type: ignore[untyped-decorator]
def _load(value: Any) -> Any:
    if value == types.uint16:

        def load_bfloat16(value: Any) -> Any:
            return _from_bfloat16(value)

        return load_bfloat16

    def load_float32(value: Any) -> Any:
        return np.float32(value)

    return load_float32


def store(out: Any, i: Any, value: Any) -> Any:
    """Write a float32 to `out[i]` in the dtype of `out`; compiled code only."""
    raise NotImplementedError


@overload(store, inline="always")  # type: ignore[untyped-decorator]
def _store(out: Any, i: Any, value: Any) -> Any:  # noqa: ARG001  (names must match `store`)
    if out.dtype == types.uint16:

        def store_bfloat16(out: Any, i: Any, value: Any) -> Any:
            out[i] = _to_bfloat16(value)

        return store_bfloat16

    def store_float32(out: Any, i: Any, value: Any) -> Any:
        out[i] = value

    return store_float32
