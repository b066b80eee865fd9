"""Acceptance A4 of algorithms.md §12."""

from __future__ import annotations

import pytest

from benchmarks.map_digits import measure


@pytest.mark.slow
def test_surrogates_of_thirty_evaluations_are_good_enough():
    figures = measure(seeds=3, designs=4)
    assert figures["sigmoid_30_r2"] >= 0.98
    assert figures["sigmoid_30_hypervolume_ratio"] >= 0.975
    for figure in ("12_r2", "30_r2", "12_hypervolume_ratio", "30_hypervolume_ratio"):
        assert figures[f"sigmoid_{figure}"] > figures[f"identity_{figure}"]
