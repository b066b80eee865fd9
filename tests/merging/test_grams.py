import numpy as np
import pytest
import torch

from evomerge.core.linear_span import LinearSpan
from evomerge.errors import ConfigError
from evomerge.merging import grams as module
from evomerge.merging.grams import BlockGrams, block_grams, change_basis, gram_of, tensor_grams
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import make_sources, space_of


def flat(sources, space):
    """(K, D) float64 of all merged tensors in the flattened order."""
    return np.stack(
        [
            np.concatenate(
                [source.tensors[t.spec.name].double().numpy().reshape(-1) for t in space.merged]
            )
            for source in sources.values()
        ]
    )


def basis_of(vectors):
    return np.concatenate([vectors[:1], vectors[1:] - vectors[:1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_grams_are_those_of_base_and_differences(dtype):
    sources = make_sources(dtype=dtype)
    space = space_of(sources)
    grams = tensor_grams(space, sources)
    assert set(grams) == {tensor.spec.name for tensor in space.merged}
    for name, gram in grams.items():
        basis = basis_of(
            np.stack([s.tensors[name].double().numpy().reshape(-1) for s in sources.values()])
        )
        assert gram.dtype == np.float64
        np.testing.assert_allclose(gram, basis @ basis.T, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(gram, gram.T)


def test_a_tensor_longer_than_a_piece_is_summed_over_all_pieces(monkeypatch):
    sources = make_sources(shapes={"big.weight": (300, 101)})
    space = space_of(sources)
    whole = tensor_grams(space, sources)["big.weight"]
    monkeypatch.setattr(module, "PIECE", 4096)
    np.testing.assert_array_equal(tensor_grams(space, sources)["big.weight"], whole)
    tensors = [source.tensors["big.weight"] for source in sources.values()]
    np.testing.assert_array_equal(gram_of(tensors), whole)


@pytest.mark.parametrize("block", [1, 2, 16, 64, 4096])
def test_block_grams_cut_across_tensors(block):
    sources = make_sources()
    space = space_of(sources)
    grams = block_grams(space, sources, block)
    basis = basis_of(flat(sources, space))
    assert grams.shape == (-(-space.n_elements // block), 4, 4)
    for b, gram in enumerate(grams):
        part = basis[:, b * block : (b + 1) * block]
        np.testing.assert_allclose(gram, part @ part.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("block", [256, 8192])
def test_block_grams_do_not_depend_on_the_piece(monkeypatch, block):
    sources = make_sources(2, shapes={"a.weight": (123, 57), "b.weight": (9999,), "c.weight": ()})
    space = space_of(sources)
    whole = block_grams(space, sources, block)
    monkeypatch.setattr(module, "PIECE", 256)
    np.testing.assert_array_equal(block_grams(space, sources, block), whole)
    basis = basis_of(flat(sources, space))
    np.testing.assert_allclose(whole.sum(0), basis @ basis.T, rtol=1e-12)


def test_blocks_must_be_powers_of_two():
    sources = make_sources()
    with pytest.raises(ValueError, match="power of two"):
        block_grams(space_of(sources), sources, 3)


def test_block_grams_feed_a_linear_span():
    sources = make_sources(2)
    space = space_of(sources)
    span = LinearSpan.from_block_grams(
        space.sources, space.n_elements, 1, block_grams(space, sources, 1)
    )
    a, b = flat(sources, space)[1:, 10:40]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert np.cos(span.angle(span.single(1), span.single(2), 10, 40)) == pytest.approx(cosine)


def test_the_number_of_threads_changes_no_bit():
    sources = make_sources(2, shapes={"a.weight": (700, 900), "b.weight": (70_001,)})
    space = space_of(sources)
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append((tensor_grams(space, sources), block_grams(space, sources, 8192)))
    finally:
        torch.set_num_threads(before)
    for grams, blocks in found[1:]:
        np.testing.assert_array_equal(blocks, found[0][1])
        for name, gram in grams.items():
            np.testing.assert_array_equal(gram, found[0][0][name])


def test_exact_deltas_enter_the_gram():
    sources = make_sources(1, dtype=torch.bfloat16)
    name = "model.embed_tokens.weight"
    delta = 1e-3 * torch.randn(11, 4, generator=torch.Generator().manual_seed(3))
    sources["e1"].deltas = {name: delta}
    space = space_of(sources)
    expected = float(delta.double().square().sum())
    assert tensor_grams(space, sources)[name][1, 1] == pytest.approx(expected, rel=1e-12)
    n = delta.numel()
    assert space.merged[0].spec.name == name
    by_block = block_grams(space, sources, 1)[:n, 1, 1].sum()
    assert by_block == pytest.approx(expected, rel=1e-12)
    # Without a base a "delta" has no meaning, and the tensors themselves are compared.
    raw = tensor_grams(space_of(sources, has_base=False), sources)[name][1, 1]
    assert raw != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "order", [("base", "e2"), ("base", "e3", "e1"), ("e2", "e1"), ("e3", "base", "e1"), ("e1",)]
)
def test_grams_of_a_subset_or_permutation_follow_from_the_whole(order):
    sources = make_sources()
    space = space_of(sources)
    for name, gram in tensor_grams(space, sources).items():
        expected = gram_of([sources[source].tensors[name] for source in order])
        got = change_basis(gram, space, order)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_missing_source_is_named():
    sources = make_sources()
    space = space_of(sources)
    del sources["e2"]
    with pytest.raises(ConfigError, match="no source is open for 'e2'"):
        tensor_grams(space, sources)


def test_grams_from_a_cache_have_the_same_bits_and_read_no_model(tmp_path):
    sources = make_sources(2, shapes={"a.weight": (700, 90), "b.weight": (70_001,)})
    space, cache = space_of(sources), DerivedCache(tmp_path)
    grams, blocks = tensor_grams(space, sources), block_grams(space, sources, 8192)
    for _ in range(2):
        kept = tensor_grams(space, sources, cache)
        assert kept.keys() == grams.keys()
        for name, gram in grams.items():
            np.testing.assert_array_equal(kept[name], gram)
        np.testing.assert_array_equal(block_grams(space, sources, 8192, cache), blocks)
        for source in sources.values():
            source.reads.clear()
    tensor_grams(space, sources, cache)
    block_grams(space, sources, 8192, cache)
    assert not any(source.reads for source in sources.values())
    changed = {name: sources[name] for name in ("base", "e2", "e1")}
    np.testing.assert_array_equal(
        tensor_grams(space_of(changed), changed, cache)["a.weight"],
        tensor_grams(space_of(changed), changed)["a.weight"],
    )


def test_block_grams_do_not_depend_on_how_they_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.grams.PIECE", 8192)
    monkeypatch.setattr("evomerge.merging.grams._PIECES_PER_ITEM", 2)
    sources = make_sources(2, shapes={"a.weight": (700, 90), "b.weight": (70_001,)})
    space, cache = space_of(sources), DerivedCache(tmp_path)
    statistic = BlockGrams(space, sources, 8192, cache)
    assert len(list(statistic.fill())) == 9
    monkeypatch.undo()
    np.testing.assert_array_equal(
        np.concatenate(statistic.parts), block_grams(space, sources, 8192)
    )


def test_a_damaged_item_is_computed_again(tmp_path):
    sources = make_sources(2)
    space, cache = space_of(sources), DerivedCache(tmp_path)
    grams = tensor_grams(space, sources, cache)
    for path in tmp_path.rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    again = tensor_grams(space, sources, cache)
    for name, gram in grams.items():
        np.testing.assert_array_equal(again[name], gram)
