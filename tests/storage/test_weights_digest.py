import pytest
import torch

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


def test_a_later_tensor_replaces_an_earlier_one_of_the_same_name():
    twice = digest([("a", torch.zeros(2)), ("b", torch.zeros(1)), ("a", torch.ones(1))])
    assert twice == digest([("a", torch.ones(1)), ("b", torch.zeros(1))])


def test_what_was_written_has_the_digest_of_what_is_read(tmp_path):
    with ShardedWriter(tmp_path / "out", max_shard_bytes=10) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
    (tmp_path / "out" / "config.json").write_text("{}")
    model = ModelFolder("a", tmp_path / "out")
    read = [(name, model.read(name)) for name in sorted(model.specs)]
    assert digest(read) == digest(tensors().items())


def test_a_large_tensor_shows_every_change():
    tensor = torch.zeros((65 << 20) // 2, dtype=torch.bfloat16)
    before = digest([("a", tensor)])
    for at in (0, 12_345_678, -1):
        tensor[at] = 1
        assert digest([("a", tensor)]) != before
        tensor[at] = 0
    assert digest([("a", tensor)]) == before
