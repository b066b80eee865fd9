from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from evomerge.core.linear_span import block_size
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.core.noise import noise_name, noise_seed
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, SourceError
from evomerge.merging.ancestor_store import TensorMemory
from evomerge.merging.materialize import materialize
from evomerge.merging.noise_source import NoiseSource, normal_table, philox_normal

SHAPES = {"a.weight": (50, 60), "b.weight": (37,), "c.weight": (3, 5)}


class Numbers:
    """A model of random numbers."""

    def __init__(self, id: str, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.id = id
        self.digest = id
        self.tensors = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}

    def header(self):
        specs = {name: TensorSpec(name, "F32", shape) for name, shape in SHAPES.items()}
        return SourceHeader(self.id, "", specs, {name: f"{self.id}{name}" for name in SHAPES})

    def read(self, name):
        return self.tensors[name]

    def read_range(self, name, start, stop):
        return self.tensors[name].reshape(-1)[start:stop]

    def exact_delta(self, name):
        return None


SOURCES = {"x": Numbers("x", 0), "y": Numbers("y", 1)}
SPACE = align([source.header() for source in SOURCES.values()], has_base=False)
NOISE = (noise_name(7), noise_name(2**64 - 1))


def test_a_name_and_its_seed_say_the_same():
    assert [noise_seed(name) for name in NOISE] == [7, 2**64 - 1]
    assert noise_seed("noise:7") is None
    assert noise_seed("x") is None
    with pytest.raises(ValueError, match="64 bits"):
        noise_name(-1)


def test_noise_is_normal():
    values = philox_normal(3, 200_000).double()
    assert abs(float(values.mean())) < 0.01
    assert float(values.var()) == pytest.approx(1.0, abs=0.01)
    for quantile in (0.01, 0.25, 0.9):
        share = float((values < NormalDist().inv_cdf(quantile)).double().mean())
        assert share == pytest.approx(quantile, abs=0.004)
    table = normal_table().double()
    assert float(table.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float((table**2).mean()) == pytest.approx(1.0, abs=1e-6)
    assert bool((table[1:] > table[:-1]).all())


def test_noise_is_pinned():
    pinned = [0.5502254, 1.6813557, -0.4047644, -0.2051217]
    np.testing.assert_allclose(philox_normal(1, 4).numpy(), pinned, rtol=1e-6)


def test_any_slice_has_the_same_bits():
    source = NoiseSource(NOISE[0], SPACE)
    whole = source.read("a.weight").reshape(-1)
    for start, stop in ((0, 3000), (1, 2), (2040, 2060), (2999, 3000)):
        assert torch.equal(source.read_range("a.weight", start, stop), whole[start:stop])


def test_seeds_and_tensors_are_unrelated():
    first, second = (NoiseSource(name, SPACE) for name in NOISE)
    one, other = first.read("a.weight").reshape(-1), second.read("a.weight").reshape(-1)
    assert abs(float(one @ other)) / one.numel() < 0.06
    assert not torch.equal(first.read("b.weight"), one[:37])
    assert first.digest != second.digest
    with pytest.raises(SourceError, match="no tensor 'd'"):
        first.read("d")


def recipe(weights, breaks=None, operator="linear", settings=None, noise=NOISE):
    grouping = "global" if breaks is None else "segments"
    named = {"normalize": False} if settings is None else settings
    params = {"weights": np.array(weights)}
    return Recipe(operator, ("x", "y", *noise), params, grouping, breaks, named)


def test_a_recipe_adds_its_noise_to_every_element():
    made = dict(materialize(recipe([[0.5, 0.25, 0.01, -0.02]]), SPACE, SOURCES))
    for name in SHAPES:
        wanted = 0.5 * SOURCES["x"].read(name).double() + 0.25 * SOURCES["y"].read(name).double()
        for weight, noise in zip((0.01, -0.02), NOISE, strict=True):
            wanted += weight * NoiseSource(noise, SPACE).read(name).double()
        torch.testing.assert_close(made[name].double(), wanted, rtol=0, atol=1e-6)


def test_segments_cut_noise_where_they_cut_models():
    whole = dict(materialize(recipe([[0.5, 0.25, 0.01, -0.02]]), SPACE, SOURCES))
    breaks = np.array([0, 100, 2100, SPACE.n_elements])
    cut = dict(materialize(recipe([[0.5, 0.25, 0.01, -0.02]] * 3, breaks), SPACE, SOURCES))
    for name in SHAPES:
        assert torch.equal(whole[name], cut[name])
    assert block_size(SPACE.n_elements) == 1


def test_noise_goes_with_linear_only():
    wrong = Recipe("task_arithmetic", ("x", NOISE[0]), {"weights": np.array([[1.0]])})
    with pytest.raises(ConfigError, match="by 'linear' only"):
        list(materialize(wrong, SPACE, SOURCES))
    with pytest.raises(ConfigError, match="is not a source"):
        list(materialize(recipe([[1.0, 0.0, 0.1]], noise=("noise:7",)), SPACE, SOURCES))


def test_small_noise_is_kept_with_the_same_bits(monkeypatch):
    monkeypatch.setattr("evomerge.merging.noise_source.LEAST_BYTES", 4 * 37 + 1)
    plain, kept = NoiseSource(NOISE[0], SPACE), NoiseSource(NOISE[0], SPACE, TensorMemory(1 << 20))
    for name in SHAPES:
        for _ in range(2):
            assert torch.equal(kept.read(name), plain.read(name))
            assert torch.equal(kept.read_range(name, 3, 11), plain.read_range(name, 3, 11))
    assert kept.read("b.weight") is kept.read("b.weight")
    assert kept.read("a.weight") is not kept.read("a.weight")


def test_a_memory_holds_what_was_used_last():
    rows = [torch.full((2,), i) for i in range(4)]
    memory = TensorMemory(2 * rows[0].nbytes)
    for i in (0, 1):
        assert memory.keep("noise", str(i), (rows[i],))[0] is rows[i]
    assert memory.find("noise", "0") is not None
    memory.keep("noise", "2", (rows[2],))
    assert [memory.find("noise", str(i)) is None for i in range(3)] == [False, True, False]
    memory.keep("noise", "2", (rows[3],))
    assert memory.find("noise", "0") is not None, "a name takes its room once"
    memory.forget("noise", "0")
    memory.forget("noise", "0")
    memory.keep("noise", "1", (rows[1],))
    assert memory.find("noise", "2") == (rows[3],)
    memory.keep("noise", "5", rows)
    assert memory.find("noise", "5") is None, "it is larger than the memory"
