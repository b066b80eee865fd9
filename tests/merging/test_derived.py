import dataclasses
import io

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.merging.derived import Derived, derive_for
from evomerge.merging.linear import Linear
from evomerge.merging.slerp import Slerp
from evomerge.merging.source import content_key
from evomerge.merging.ties import Ties
from tests.merging.memory_source import make_sources, space_of


def test_derived_survives_an_npz_file_without_pickle():
    sources = make_sources()
    space = space_of(sources)
    before = derive_for(Slerp, space, sources)
    buffer = io.BytesIO()
    np.savez(buffer, **before.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as stored:
        after = Derived.from_arrays(dict(stored), space, sources)
    assert set(after.grams) == set(before.grams)
    for name, gram in before.grams.items():
        np.testing.assert_array_equal(after.grams[name], gram)
    thresholds = derive_for(Ties, space, sources).thresholds
    assert after.thresholds is not None
    assert after.thresholds.threshold("e1", 0.3) == thresholds.threshold("e1", 0.3)
    with pytest.raises(ConfigError, match="expected"):
        Derived.from_arrays({"gram:x": np.zeros((2, 2))}, space, sources)


def test_only_what_an_operator_asks_for_is_derived():
    sources = make_sources()
    space = space_of(sources)
    assert derive_for(Linear, space, sources).grams == {}
    assert derive_for(Linear, space, sources).thresholds is None
    assert derive_for(Slerp, space, sources).grams
    assert derive_for(Ties, space, sources).thresholds is not None
    assert not any(source.reads for source in make_sources().values())


def test_one_model_under_two_sets_of_names_is_two_sources():
    sources = make_sources(1)
    renamed = dataclasses.replace(
        sources["e1"], tensors={f"x.{k}": v for k, v in sources["e1"].tensors.items()}
    )
    assert content_key(renamed) != content_key(sources["e1"])
    assert content_key(make_sources(1)["e1"]) == content_key(sources["e1"])
