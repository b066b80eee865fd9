import itertools

import pytest
import torch

from evomerge.merging import weights_digest
from evomerge.merging.weights_digest import WeightsDigest
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.tensor_writer import ShardedWriter


def tensors():
    gen = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(5, 4, generator=gen).bfloat16(),
        "b": torch.randn(3, generator=gen),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 2),
        "flag": torch.tensor([True, False]),
    }


def digest(entries):
    total = WeightsDigest()
    for name, tensor in entries:
        total.add(name, tensor)
    return total.hexdigest()


def test_the_order_of_adding_does_not_matter():
    entries = list(tensors().items())
    assert digest(entries) == digest(entries[::-1])
    assert len(digest(entries)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"b": torch.zeros(3)},
        {"a": tensors()["a"].half()},
        {"a": tensors()["a"].view(torch.int16)},
        {"a": tensors()["a"].reshape(4, 5)},
        {"extra": torch.ones(1)},
    ],
    ids=["value", "cast", "dtype", "shape", "name"],
)
def test_any_change_changes_the_digest(change):
    assert digest(tensors().items()) != digest({**tensors(), **change}.items())


def test_layout_in_memory_does_not_matter():
    tensor = torch.randn(4, 6)
    assert digest([("a", tensor.T)]) == digest([("a", tensor.T.contiguous())])


def test_a_name_added_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        digest([("a", torch.ones(1)), ("a", torch.ones(1))])


def test_what_was_written_has_the_digest_of_what_is_read(tmp_path):
    with ShardedWriter(tmp_path / "out", max_shard_bytes=10) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
    (tmp_path / "out" / "config.json").write_text("{}")
    model = ModelFolder("a", tmp_path / "out")
    read = [(name, model.read(name)) for name in sorted(model.specs)]
    assert digest(read) == digest(tensors().items())


def test_blocks_of_a_large_tensor_are_even_and_reach_both_ends():
    limit = weights_digest.SAMPLED_ABOVE_BYTES
    assert weights_digest._blocks(0) == []
    assert weights_digest._blocks(limit) == [(0, limit)]
    for n_bytes in (limit + 1, 3 * limit + 5):
        blocks = weights_digest._blocks(n_bytes)
        assert len(blocks) == 64
        assert blocks[0] == (0, 1 << 20)
        assert blocks[-1] == (n_bytes - (1 << 20), n_bytes)
        gaps = {b[0] - a[0] for a, b in itertools.pairwise(blocks)}
        assert max(gaps) - min(gaps) <= 1


def test_a_large_tensor_shows_changes_at_both_ends():
    tensor = torch.zeros((65 << 20) // 2, dtype=torch.bfloat16)
    before = digest([("a", tensor)])
    for at in (0, -1):
        tensor[at] = 1
        assert digest([("a", tensor)]) != before
        tensor[at] = 0
    assert digest([("a", tensor)]) == before
