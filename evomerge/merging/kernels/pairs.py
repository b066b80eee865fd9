"""Stored elements two neighbours at a time: bfloat16 ones are decoded from one 32-bit word.

Widening single bfloat16 elements costs a shuffle and a shift each. The upper half of a word
is a float32 once the lower one is cleared, the lower one after a shift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from evomerge.merging.kernels.intrinsics import rounded_word
from evomerge.merging.kernels.jit import inline

_I32, _FLOAT = ir.IntType(32), ir.FloatType()
_UPPER, _HALF = np.uint32(0xFFFF0000), np.uint32(16)


@intrinsic  # type: ignore[untyped-decorator]
def _word(_context: Any, address: Any, _i: Any) -> Any:
    """Return 32-bit word i after an address that need not be aligned."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = builder.gep(builder.inttoptr(args[0], _I32.as_pointer()), [args[1]])
        return builder.load(place, align=1)

    return types.uint32(address, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _set_word(_context: Any, address: Any, _i: Any, _word: Any) -> Any:
    """Write 32-bit word i after an address that is aligned to two bytes."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = builder.gep(builder.inttoptr(args[0], _I32.as_pointer()), [args[1]])
        builder.store(args[2], place, align=2)
        return context.get_dummy_value()

    return types.void(address, types.uint64, types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(_context: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_bits(_context: Any, _value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _rounded(_context: Any, _value: Any) -> Any:
    """Return `rounded_word` of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return rounded_word(builder, args[0])

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _raised(_context: Any, _word: Any, half: Any) -> Any:
    """Return a word whose upper half is the lower (0) or upper (1) half of a word."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word, half = args
        lower = builder.shl(word, ir.Constant(_I32, 16))
        is_upper = builder.icmp_unsigned("!=", half, half.type(0))
        return builder.select(is_upper, word, lower)

    return types.uint32(types.uint32, half), generate


@inline
def upper_bits(address: Any, pair: Any, half: Any) -> Any:
    """Return a word whose upper half is 16-bit number 2 * pair + half after an address.

    Args:
        address: Of any alignment.
        pair: uint64.
        half: 0 or 1, a constant once loops are unrolled.
    """
    return _raised(_word(address, pair), half)


def element(address: Any, pair: Any, half: Any, like: Any) -> Any:
    """Return element 2 * pair + half after an address as float32; compiled code only.

    Args:
        address: Where the array begins, of any alignment.
        pair: uint64.
        half: 0 or 1, a constant once loops are unrolled.
        like: Any array of the same dtype.
    """
    raise NotImplementedError


@overload(element, inline="always")  # type: ignore[untyped-decorator]
def _element(address: Any, pair: Any, half: Any, like: Any) -> Any:  # noqa: ARG001  (names)
    if like.dtype == types.uint16:

        def element_bfloat16(address: Any, pair: Any, half: Any, like: Any) -> Any:  # noqa: ARG001
            return _as_float(_raised(_word(address, pair), half) & _UPPER)

        return element_bfloat16

    def element_float32(address: Any, pair: Any, half: Any, like: Any) -> Any:  # noqa: ARG001
        return _as_float(_word(address, pair + pair + np.uint64(half)))

    return element_float32


def put_pair(address: Any, pair: Any, even: Any, odd: Any, like: Any) -> Any:
    """Write elements 2 * pair and 2 * pair + 1 after an address; compiled code only.

    Returns:
        Two float32 numbers that are finite if, and only if, what was written is.
    """
    raise NotImplementedError


@overload(put_pair, inline="always")  # type: ignore[untyped-decorator]
def _put_pair(address: Any, pair: Any, even: Any, odd: Any, like: Any) -> Any:  # noqa: ARG001
    if like.dtype == types.uint16:

        def put_bfloat16(address: Any, pair: Any, even: Any, odd: Any, like: Any) -> Any:  # noqa: ARG001
            low, high = _rounded(even), _rounded(odd)
            _set_word(address, pair, (low >> _HALF) | (high & _UPPER))
            return _as_float(low), _as_float(high)

        return put_bfloat16

    def put_float32(address: Any, pair: Any, even: Any, odd: Any, like: Any) -> Any:  # noqa: ARG001
        _set_word(address, pair + pair, _as_bits(even))
        _set_word(address, pair + pair + np.uint64(1), _as_bits(odd))
        return even, odd

    return put_float32
