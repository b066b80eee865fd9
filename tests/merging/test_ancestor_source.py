"""Recipes over ancestors: exact to float32, computed once, the same whatever was forgotten."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evomerge.algorithms.noisy_lineage import NoisyLineage
from evomerge.core.ancestry import ancestor_name
from evomerge.core.linear_span import LinearSpan
from evomerge.core.model_space import align
from evomerge.core.noise import noise_name
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError, SourceError
from evomerge.merging.ancestor_source import with_made
from evomerge.merging.ancestor_store import AncestorStore
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import materialize
from evomerge.merging.noise_source import NoiseSource
from evomerge.merging.plan import build_operators
from evomerge.merging.population import merge_population
from evomerge.merging.source import content_key
from evomerge.seeding import generator
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.test_noise_source import SHAPES, SOURCES, SPACE, Numbers

N = SPACE.n_elements


def span() -> LinearSpan:
    x, y = (torch.cat([s.read(n).reshape(-1) for n in SHAPES]).double() for s in SOURCES.values())
    basis = torch.stack([x, y - x]).numpy()
    return LinearSpan.from_block_grams(("x", "y"), N, 1, np.einsum("in,jn->nij", basis, basis))


def evolve(n: int, max_noise: int) -> Recipe:
    lineage = NoisyLineage(span=span(), sigma=0.05, max_noise=max_noise)
    rng = generator(4)
    members = [lineage.warm_up(rng) for _ in range(6)]
    for _ in range(n):
        a, b = (members[int(i)] for i in rng.permutation(6)[:2])
        members[int(rng.integers(6))] = child = lineage.cross(a, b, rng)
    return child


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in SHAPES])


def whole(source) -> np.ndarray:
    return flat({name: source.read(name) for name in SHAPES}).double().numpy()


def chained(recipe: Recipe) -> np.ndarray:
    """(N,) float64: every recipe of the lineage computed from those before it."""
    known = {name: whole(source) for name, source in SOURCES.items()}
    for name, part in recipe.lineage().items():
        rows = [known[s] if s in known else whole(NoiseSource(s, SPACE)) for s in part.sources]
        at = np.repeat(part.params["weights"], np.diff(part.breaks), axis=0)
        known[name] = np.einsum("dk,kd->d", at, np.stack(rows))
    return known[ancestor_name(recipe.digest())]


def flattened(recipe: Recipe) -> Recipe:
    """The same model as one recipe over models and noise."""
    ends, models = {0, N}, {}
    for name, part in recipe.lineage().items():
        ends |= set(part.breaks.tolist())
        models[name] = part
    breaks = np.array(sorted(ends))
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, part in models.items():
        at = part.breaks.searchsorted(breaks[:-1], side="right") - 1
        own: dict[str, np.ndarray] = {}
        for column, source in enumerate(part.sources):
            weight = part.params["weights"][at, column]
            for term, inner in rows.get(source, {source: np.ones(len(at))}).items():
                own[term] = own.get(term, 0.0) + weight * inner
        rows[name] = own
    terms = rows[ancestor_name(recipe.digest())]
    weights = np.stack(list(terms.values()), axis=1)
    settings = {"normalize": False}
    return Recipe("linear", tuple(terms), {"weights": weights}, "segments", breaks, settings)


def merged(recipe: Recipe, store: AncestorStore | None = None, sources=SOURCES) -> torch.Tensor:
    derived = Derived(ancestors=AncestorStore() if store is None else store)
    return flat(dict(materialize(recipe, SPACE, sources, derived)))


def relative(found: torch.Tensor, wanted: np.ndarray) -> float:
    gap = np.linalg.norm(found.double().numpy() - wanted)
    return float(gap / np.linalg.norm(wanted))


@pytest.mark.parametrize("max_noise", [3, 6, 32])
def test_a_child_of_ancestors_is_the_flat_recipe_of_everything(max_noise):
    recipe = evolve(60, max_noise)
    assert recipe.ancestors
    found = merged(recipe)
    assert found.dtype == torch.float32
    assert relative(found, chained(recipe)) < 1e-6
    everything = flattened(recipe)
    assert not everything.named
    assert len(everything.sources) > max_noise
    assert relative(merged(everything), chained(recipe)) < 1e-6


def test_a_long_lineage_is_a_float64_chain_of_the_same_steps():
    recipe = evolve(400, 4)
    assert len(recipe.closure()) > 150
    assert relative(merged(recipe), chained(recipe)) < 1e-5


def test_what_was_forgotten_is_computed_again_with_the_same_bits(tmp_path):
    recipe = evolve(60, 4)
    expected = merged(recipe)
    nothing = AncestorStore(max_bytes=0)
    assert torch.equal(merged(recipe, nothing), expected)
    cache = DerivedCache(tmp_path)
    on_disk = AncestorStore(cache, least_bytes=1, least_on_disk=1, max_bytes=0)
    assert torch.equal(merged(recipe, on_disk), expected)
    files = list((tmp_path / "ancestors").glob("*/*.safetensors"))
    assert len(files) == 3 * len(recipe.closure())
    for path in files[::2]:
        path.unlink()
    files[1].write_bytes(b"torn")
    assert torch.equal(merged(recipe, on_disk), expected)
    again = AncestorStore(cache, least_bytes=1, least_on_disk=1)
    assert torch.equal(merged(recipe, again), expected)


class Disk(DerivedCache):
    """A cache on a disk of so many bytes."""

    def __init__(self, root, size: int) -> None:
        super().__init__(root)
        self.size = size

    def free_bytes(self) -> int:
        return self.size - self.taken

    @property
    def taken(self) -> int:
        """Bytes of the items."""
        return sum(path.stat().st_size for path in self.root.glob("*/*/*.safetensors"))

    @property
    def held(self) -> list[str]:
        """Ancestors with items."""
        return sorted({path.parent.name for path in self.root.glob("*/*/*.safetensors")})


def disk_store(cache: DerivedCache, **keys) -> AncestorStore:
    return AncestorStore(cache, **{"least_on_disk": 1, "max_bytes": 0, **keys})


@pytest.mark.parametrize("keys", [{"max_entries": 5}, {"share_of_disk": 0.25}])
def test_the_disk_holds_the_ancestors_that_were_used_last(tmp_path, keys):
    recipe = evolve(40, 4)
    cache = Disk(tmp_path, 4 * 5 * (4 * N + 500))
    store = disk_store(cache, **keys)
    assert torch.equal(merged(recipe, store), merged(recipe))
    assert len(recipe.closure()) > 10
    assert 3 <= len(cache.held) <= 5
    assert store.digests[recipe.named[-1]] in digests_of(cache), "it was computed last"


def digests_of(cache: Disk) -> set[str]:
    """Return the digests of the ancestors that have items."""
    bodies = [(cache.root / "ancestors" / name / "key.json").read_text() for name in cache.held]
    return {json.loads(body)["digest"] for body in bodies}


def counted(store: AncestorStore, recipe: Recipe) -> int:
    """Merge a recipe and return how many items of ancestors had to be computed."""
    kept = []
    keep = store.keep
    store.keep = lambda *given: (kept.append(given[:2]), keep(*given))[1]
    merged(recipe, store)
    del store.keep
    assert len(kept) == len(set(kept))
    return len(kept)


def test_a_full_cache_is_done_without(tmp_path):
    recipe = evolve(40, 4)
    for cache in (DerivedCache(tmp_path, budget_bytes=20_000), Disk(tmp_path / "full", 0)):
        store = AncestorStore(cache, least_on_disk=1)
        assert torch.equal(merged(recipe, store), merged(recipe))
        assert counted(store, recipe) == 0
    assert cache.held == []


@pytest.mark.parametrize("least_bytes", [1, 4 * 60, 1 << 20])
def test_neighbours_share_a_file_and_nothing_is_computed_twice(tmp_path, least_bytes):
    """Were small tensors in memory only, large ones would drive them out, back to the models."""
    recipe, cache = evolve(60, 4), Disk(tmp_path, 1 << 40)
    n_items = {1: 3, 240: 1, 1 << 20: 1}[least_bytes]
    store = disk_store(cache, least_bytes=least_bytes)
    assert counted(store, recipe) == n_items * len(recipe.closure())
    for again in (store, disk_store(cache, least_bytes=least_bytes)):
        assert counted(again, recipe) == 0
        assert torch.equal(merged(recipe, again), merged(recipe))


def test_small_models_stay_in_memory(tmp_path):
    recipe, cache = evolve(20, 4), Disk(tmp_path, 1 << 40)
    store = AncestorStore(cache, least_on_disk=4 * N + 1)
    assert counted(store, recipe) == len(recipe.closure())
    assert counted(store, recipe) == 0
    assert cache.held == []


def test_a_file_of_something_else_is_no_ancestor(tmp_path):
    recipe, cache = evolve(20, 4), Disk(tmp_path, 1 << 40)
    expected = merged(recipe, disk_store(cache))
    wrong = [
        {"0": torch.zeros(7)},
        {"ancestors": torch.zeros(N)},
        {
            str(i): torch.zeros(shape, dtype=torch.float64)
            for i, shape in enumerate(SHAPES.values())
        },
    ]
    for i, path in enumerate(sorted((tmp_path / "ancestors").iterdir())):
        body = json.loads((path / "key.json").read_text())
        cache.entry(body.pop("kind"), body).write("a.weight", wrong[i % 3])
    assert torch.equal(merged(recipe, disk_store(cache)), expected)


def test_other_processes_may_remove_what_was_not_used_of_late(tmp_path):
    recipe, cache = evolve(40, 4), Disk(tmp_path, 1 << 40)
    expected = merged(recipe)
    store = disk_store(cache, max_claims=4)
    merged(recipe, store)
    folders = sorted((tmp_path / "ancestors").iterdir())
    gone = [folder for folder in folders if DerivedCache(tmp_path).remove(folder)]
    assert len(gone) == len(folders) - 4 > 10
    assert torch.equal(merged(recipe, store), expected)


def test_what_a_store_wrote_can_be_removed_and_nothing_else(tmp_path):
    recipe, older, cache = evolve(40, 4), evolve(20, 4), Disk(tmp_path, 1 << 40)
    merged(older, disk_store(cache))
    before = cache.held
    store = disk_store(cache)
    expected = merged(recipe, store)
    assert set(before) < set(cache.held)
    store.clear_disk()
    assert cache.held == before
    assert torch.equal(merged(recipe, store), expected)


def test_the_cache_says_which_models_ancestors_are_of(tmp_path):
    recipe, cache = evolve(20, 4), Disk(tmp_path, 1 << 40)
    merged(recipe, disk_store(cache))
    for path in (tmp_path / "ancestors").glob("*/key.json"):
        said = json.loads(path.read_text())["sources"]
        assert said == sorted(content_key(source) for source in SOURCES.values())


@pytest.mark.parametrize("piece", [7, 100, 2048])
def test_pieces_have_the_same_bits(monkeypatch, piece):
    """Noise is made where it is added: whole tensors of 32 terms would not fit the memory."""
    recipe = evolve(30, 4)
    expected = merged(recipe)
    monkeypatch.setattr("evomerge.merging.materialize.PIECE", piece)
    monkeypatch.setattr("evomerge.merging.ancestor_source.PIECE", piece)
    assert torch.equal(merged(recipe), expected)


def test_an_ancestor_is_computed_once_for_many_candidates():
    class Counting(Numbers):
        n_reads = 0

        def read_range(self, name, start, stop):
            self.n_reads += 1
            return super().read_range(name, start, stop)

    sources = {"x": Counting("x", 0), "y": Counting("y", 1)}
    recipe, store = evolve(60, 4), AncestorStore()
    merged(recipe, store, sources)
    before = [source.n_reads for source in sources.values()]
    for _ in range(3):
        merged(recipe, store, sources)
    segments = len(recipe.breaks) - 1
    after = [source.n_reads for source in sources.values()]
    assert all(a - b <= 3 * (len(SHAPES) + segments) for a, b in zip(after, before, strict=True))


def test_a_population_has_the_same_bits():
    recipes = [evolve(n, 4) for n in (30, 31, 40)]
    parts = dict(merge_population(recipes, SPACE, SOURCES, Derived()))
    for index, recipe in enumerate(recipes):
        found = flat({name: tensors[index] for name, tensors in parts.items()})
        assert torch.equal(found, merged(recipe))


def test_models_in_bfloat16_have_ancestors_in_float32():
    class Half(Numbers):
        def __init__(self, id, seed):
            super().__init__(id, seed)
            self.tensors = {name: tensor.bfloat16() for name, tensor in self.tensors.items()}

    sources = {"x": Half("x", 0), "y": Half("y", 1)}
    recipe = evolve(30, 4)
    found = merged(recipe, None, sources)
    exact = {id: Numbers(id, 0) for id in sources}
    for id, source in sources.items():
        exact[id].tensors = {name: tensor.float() for name, tensor in source.tensors.items()}
    assert torch.equal(found, merged(recipe, None, exact))


def test_slices_are_those_of_the_whole_and_names_are_checked():
    recipe = evolve(20, 4)
    (name, _), *_ = recipe.ancestors.items()
    source = with_made(SOURCES, recipe, SPACE, AncestorStore())[name]
    tensor = source.read("a.weight")
    assert torch.equal(source.read_range("a.weight", 7, 99), tensor.reshape(-1)[7:99])
    assert set(source.header().tensors) == set(SHAPES)
    assert source.exact_delta("a.weight") is None
    with pytest.raises(SourceError, match="has no tensor"):
        source.read("d")


def test_the_digest_is_that_of_recipe_and_models():
    recipe = evolve(20, 4)
    (name, _), *_ = recipe.ancestors.items()
    others = {"x": SOURCES["x"], "y": Numbers("z", 5)}
    digests = {
        with_made(models, recipe, SPACE, AncestorStore())[name].digest
        for models in (SOURCES, dict(SOURCES), others)
    }
    assert len(digests) == 2


def over(ancestor: Recipe, **given) -> Recipe:
    name = ancestor_name(ancestor.digest())
    weights = {"weights": np.array([[0.0, 0.5, 0.5]])}
    ancestors = given.get("ancestors", {name: ancestor})
    return Recipe(
        given.get("operator", "linear"),
        ("x", "y", name),
        weights,
        settings={"normalize": False},
        ancestors=ancestors,
    )


def test_what_cannot_be_an_ancestor_is_refused():
    raw = {"normalize": False}
    row = {"weights": np.array([[0.5, 0.5]])}
    assert merged(over(Recipe("linear", ("x", "y"), row, settings=raw))).isfinite().all()
    wrong = {
        "no weighted sum": Recipe("linear", ("x", "y"), row),
        "no weighted sum of": Recipe("linear", ("x", "y"), row, "kind", settings=raw),
        "is not a source": Recipe("linear", ("x", "z"), row, settings=raw),
        "ancestor [0-9a-f]{16}: breaks end": Recipe(
            "linear", ("x", "y"), row, "segments", np.array([0, 7]), raw
        ),
        "must be": Recipe("linear", ("x", "y"), {"weights": np.ones((1, 3))}, settings=raw),
    }
    for message, ancestor in wrong.items():
        with pytest.raises(ConfigError, match=message):
            merged(over(ancestor))
    good = Recipe("linear", ("x", "y"), row, settings=raw)
    with pytest.raises(ConfigError, match="is missing"):
        build_operators(over(good, ancestors={}), SPACE)
    with pytest.raises(ConfigError, match="by 'linear' only"):
        build_operators(over(good, operator="task_arithmetic"), SPACE)


def test_a_recipe_of_very_many_terms_is_refused():
    noise = [noise_name(i) for i in range(1025)]
    row = {"weights": np.full((1, 1027), 0.1)}
    recipe = Recipe("linear", ("x", "y", *noise), row, settings={"normalize": False})
    for refused in (recipe, over(recipe)):
        with pytest.raises(ConfigError, match="names 1025 terms of noise and ancestors"):
            merged(refused)


def test_an_ancestor_that_overflows_is_an_error():
    huge, beyond = (
        Recipe("linear", ("x", "y"), {"weights": np.array([[w, w]])}, settings={"normalize": False})
        for w in (3e38, 1e300)
    )
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        merged(over(huge))
    with pytest.raises(ConfigError, match=r"params.weights holds 1e\+300; .* float32"):
        merged(over(beyond))
    with pytest.raises(ConfigError, match=r"params.weights holds 1e\+300; .* float32"):
        merged(beyond)


def test_a_recipe_read_back_merges_to_the_same_bits():
    recipe = evolve(60, 4)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert torch.equal(merged(again), merged(recipe))


def test_a_base_may_have_children():
    base = Numbers("b", 9)
    space = align([s.header() for s in (base, *SOURCES.values())], has_base=True)
    sources = {"b": base, **SOURCES}
    noise = noise_name(3)
    parent = Recipe(
        "linear",
        ("b", "x", "y", noise),
        {"weights": np.array([[0.2, 0.3, 0.4, 0.1]])},
        settings={"normalize": False},
    )
    name = ancestor_name(parent.digest())
    child = Recipe(
        "linear",
        ("b", "x", "y", name),
        {"weights": np.array([[0.0, 0.0, 0.0, 1.0]])},
        settings={"normalize": False},
        ancestors={name: parent},
    )
    made = dict(materialize(child, space, sources))
    torch.testing.assert_close(made, dict(materialize(parent, space, sources)))
