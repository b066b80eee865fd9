"""Measures, in a process of its own, what every merge method holds of a large tensor.

    python -m tests.merging.memory_of_merges [METHOD ...]

prints method -> mode -> bytes beside the sources and the result, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

import evomerge.merging  # noqa: F401  # registers the methods
from evomerge.core.genes import gene_fields
from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs, merge_operators
from tests.merging.modes import choices_of
from tests.merging.tensors import inputs_of, random_tensors

LIBC = ctypes.CDLL(None)
N_EXPERTS = 4
# name -> a small shape, and a large one of 8 million elements. A stacked expert, or a long row, is
# larger than a pass (2**17 elements); two bytes do not number its elements.
SHAPES = {
    "matrix": ((1024, 512), (4096, 2048)),
    "small stack": ((4, 256, 512), (64, 256, 512)),  # each just a pass
    "stack": ((4, 256, 512), (8, 1024, 1024)),
    "long rows": ((4, 1 << 17), (4, 1 << 21)),
}
N_ELEMENTS = 1 << 23


def modes(cls, n):
    """Yield (name, parameters): genes inside their ranges, every setting varied by itself."""
    width = n + 1 if cls.weights_over == "sources" else n
    genes = {}
    for item in gene_fields(cls):
        inside = 0.4 * item.gene.low + 0.6 * item.gene.high
        genes[item.name] = (inside,) * width if item.per_source else inside
    choices = choices_of(cls)
    compats = [{"compat": value} for value in choices.get("compat", ())] or [{}]
    for compat in compats:
        for key, values in choices.items():
            for value in values:
                settings = {**compat, key: value}
                yield " ".join(f"{k}={v}" for k, v in settings.items()), {**genes, **settings}
    if not choices:
        yield "default", genes


def operators_of(cls, n):
    """Yield (mode, operator) for every mode whose settings do not exclude each other."""
    for mode, parameters in modes(cls, n):
        with suppress(ConfigError):
            yield mode, cls(**parameters)


def inputs_for(shape, n):
    base, experts = random_tensors(shape, n, dtype=torch.bfloat16)
    inputs = inputs_of(base, experts, threshold=lambda *_: 0.02)
    return TensorInputs(
        **{
            **{key: getattr(inputs, key) for key in inputs.__dataclass_fields__},
            "name": "model.layers.1.mlp.w.weight",
            "n_layers": 3,
            "pooled_gram": lambda _: inputs.gram,
        }
    )


def status(key):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+)", text, re.M).group(1)) * 1024


def held_by(operator, small, large):
    """Return the most bytes that a merge of `large` holds beside its sources and its result."""
    operator.merge(small)  # what is made once is no matter
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):  # what merges before left behind must not be lent to this one
        LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    merged = operator.merge(large)
    return status("VmHWM") - before - merged.nbytes


def main():
    found = {}
    for name in sys.argv[1:] or merge_operators.names():
        cls = merge_operators.get(name)
        n = cls.n_models or N_EXPERTS
        sizes = found[name] = {}
        for kind, (small_shape, large_shape) in SHAPES.items():
            small, large = inputs_for(small_shape, n), inputs_for(large_shape, n)
            for mode, operator in operators_of(cls, n):
                sizes[f"{kind}, {mode}"] = held_by(operator, small, large)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
