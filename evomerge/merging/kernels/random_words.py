"""Philox4x32 for many counters in lockstep, as LLVM vectors; see `merging.philox`.

The loop over counters, as the compiler vectorises it, ends a vector before it begins the next, and
each round waits for the one before. Here a round of 64 counters is done before the next round.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from evomerge.merging.philox import BLOCKS, KEY_STEPS, MULTIPLIERS, ROUNDS

WIDE = 64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_VECTOR, _WORDS = ir.VectorType(_I64, WIDE), ir.VectorType(_I32, WIDE)
_HALVES = ir.VectorType(_I32, 2 * WIDE)
# Every upper half in the place of its lower half too: shuffles are cheaper than shifts.
_UPPER = ir.Constant(_HALVES, [i | 1 for i in range(2 * WIDE)])


def _all(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * WIDE)


@intrinsic  # type: ignore[untyped-decorator]
def philox_words(
    _context: Any, words: Any, _i: Any, _low: Any, _high: Any, _key_0: Any, _key_1: Any
) -> Any:
    """Write the four words of counters _low … _low + `WIDE` - 1, a plane of `BLOCKS` each.

    Args:
        words: (4 * BLOCKS, …) uint32.
        _i: Where in the planes, uint64.
        _low: Low 32 bits of the first counter, uint64; those of the last one do not overflow.
        _high: The other 32 bits, uint64.
        _key_0: Low word of the key, uint64.
        _key_1: High word of the key, uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, place, low, high, key_0, key_1 = args

        def broadcast(value: Any) -> Any:
            nothing = ir.Constant(_VECTOR, ir.Undefined)
            one = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
            return builder.shuffle_vector(one, nothing, ir.Constant(_WORDS, [0] * WIDE))

        def mixed(product: Any, word: Any, key: Any) -> Any:
            halves = builder.bitcast(product, _HALVES)
            upper = builder.bitcast(builder.shuffle_vector(halves, halves, _UPPER), _VECTOR)
            return builder.xor(builder.xor(upper, word), key)

        def multiplied(word: Any, multiplier: int) -> Any:
            # What lies above the low 32 bits of a word never reaches the result.
            return builder.mul(builder.and_(word, _all(0xFFFFFFFF)), _all(multiplier))

        c0 = builder.add(broadcast(low), ir.Constant(_VECTOR, list(range(WIDE))))
        c1, k0, k1 = broadcast(high), broadcast(key_0), broadcast(key_1)
        c2 = c3 = _all(0)
        for _ in range(ROUNDS):
            product_0, product_1 = multiplied(c0, MULTIPLIERS[0]), multiplied(c2, MULTIPLIERS[1])
            c0, c1 = mixed(product_1, c1, k0), product_1
            c2, c3 = mixed(product_0, c3, k1), product_0
            k0, k1 = builder.add(k0, _all(KEY_STEPS[0])), builder.add(k1, _all(KEY_STEPS[1]))
        data = context.make_array(signature.args[0])(context, builder, array).data
        for plane, word in enumerate((c0, c1, c2, c3)):
            start = builder.gep(data, [builder.add(place, ir.Constant(_I64, plane * BLOCKS))])
            target = builder.bitcast(start, _WORDS.as_pointer())
            builder.store(builder.trunc(word, _WORDS), target, align=4)
        return context.get_dummy_value()

    word = types.uint64
    return types.void(words, word, word, word, word, word), generate
