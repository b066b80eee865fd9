"""Every registered merge method in any of its modes, drawn at random.

What can be drawn is read off the dataclass: genes from their search ranges, settings from their
annotations. A new method, or a new mode of one, needs no line here.
"""

from __future__ import annotations

import typing

from hypothesis import assume
from hypothesis import strategies as st

from evomerge.core.genes import gene_fields, setting_names
from evomerge.errors import ConfigError
from tests.merging.oracle_samples import MAGNITUDES, SHAPES, Sample

MOST = 16
# Methods that cannot run on a single expert; what is missing here runs on one.
LEAST = {"model_stock": 2, "karcher": 2}


def choices_of(cls):
    """Return {setting: its legal values} for settings with few of them; others keep defaults."""
    hints = typing.get_type_hints(cls)
    found = {}
    for name in setting_names(cls):
        hint = hints[name]
        if hint is bool:
            found[name] = (False, True)
        elif typing.get_origin(hint) is typing.Literal:
            found[name] = typing.get_args(hint)
    return found


def n_experts_of(name, cls):
    """Return a strategy of how many experts: the ends and what lies between."""
    if cls.n_models is not None:
        return st.just(cls.n_models)
    least = LEAST.get(name, 1)
    return st.sampled_from([least, MOST]) | st.integers(least, 5)


@st.composite
def operators(draw, cls, n, **fixed):
    """An operator for n experts: genes inside their ranges, ends included, and any legal mode.

    Args:
        cls: The registered class.
        n: Number of experts.
        fixed: Values that are not drawn.
    """
    width = n + 1 if cls.weights_over == "sources" else n
    values = dict(fixed)
    for item in gene_fields(cls):
        low, high = item.gene.low, item.gene.high
        one = st.floats(low, high).map(lambda x: round(x, 3)) | st.sampled_from([low, high])
        if item.name not in fixed:
            values[item.name] = draw(st.tuples(*[one] * width) if item.per_source else one)
    for name, legal in choices_of(cls).items():
        if name not in fixed:
            values[name] = draw(st.sampled_from(legal))
    try:
        return cls(**values)
    except ConfigError:
        assume(False)


@st.composite
def samples(draw, n, *, dtypes=tuple(MAGNITUDES), kinds=("near", "near", "zero"), sizes=None):
    """A `Sample` of n experts in any shape: scalars, vectors, odd matrices, stacks of experts."""
    dtype = draw(st.sampled_from(dtypes))
    return Sample(
        draw(st.sampled_from(SHAPES)),
        dtype,
        draw(st.lists(st.sampled_from(kinds), min_size=n, max_size=n)),
        magnitude=draw(st.sampled_from(sizes or (1.0,))),
        seed=draw(st.integers(0, 2**20)),
    )
