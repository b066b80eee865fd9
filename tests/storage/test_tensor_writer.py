import json
from unittest.mock import ANY

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evomerge.errors import ConfigError
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.tensor_writer import ShardedWriter

INDEX = "model.safetensors.index.json"


def tensors():
    return {
        "b.weight": torch.randn(10, 10),
        "a.weight": torch.randn(10, 10).bfloat16(),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "odd": torch.arange(3, dtype=torch.uint8),
        "turned": torch.randn(4, 6).T,
        "double": torch.randn(5).double(),
    }


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


def test_a_small_model_is_one_file_that_safetensors_reads(tmp_path):
    expected = tensors()
    with ShardedWriter(tmp_path / "out") as writer:
        for name, tensor in expected.items():
            writer.add(name, tensor)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    path = tmp_path / "out" / "model.safetensors"
    same(load_file(path), expected)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert writer.n_bytes == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.parametrize("max_shard_bytes", [1, 50, 400, 600])
def test_shards_and_index_read_back_whole(max_shard_bytes, tmp_path):
    expected = tensors()
    writer = ShardedWriter(tmp_path / "out", max_shard_bytes=max_shard_bytes)
    for name, tensor in expected.items():
        writer.add(name, tensor)
    paths = writer.close()
    assert writer.close() == []
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert paths == [*shards, tmp_path / "out" / INDEX]
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert not list((tmp_path / "out").glob("*.partial"))
    loaded = {}
    for shard in shards:
        content = load_file(shard)
        n_bytes = sum(tensor.nbytes for tensor in content.values())
        assert n_bytes <= max_shard_bytes or len([t for t in content.values() if t.nbytes]) == 1
        loaded.update(content)
    same(loaded, expected)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index == {"metadata": {"total_size": writer.n_bytes}, "weight_map": ANY}
    (tmp_path / "out" / "config.json").write_text("{}")
    model = ModelFolder("a", tmp_path / "out")
    same({name: model.read(name) for name in model.specs}, expected)


def test_tensors_that_share_storage_are_written_apart(tmp_path):
    shared = torch.randn(4)
    with ShardedWriter(tmp_path / "out") as writer:
        writer.add("a", shared)
        writer.add("b", shared)
        writer.add("c", shared[1:3])
    same(
        load_file(tmp_path / "out/model.safetensors"), {"a": shared, "b": shared, "c": shared[1:3]}
    )


def test_metadata_is_written(tmp_path):
    with ShardedWriter(tmp_path / "out", metadata={"recipe": "9f2c"}) as writer:
        writer.add("a", torch.ones(1))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"recipe": "9f2c"}


def test_nothing_has_a_final_name_before_close(tmp_path):
    writer = ShardedWriter(tmp_path / "out", max_shard_bytes=1)
    for name, tensor in tensors().items():
        writer.add(name, tensor)
        assert not list((tmp_path / "out").glob("*.safetensors"))


def test_an_exception_leaves_no_files(tmp_path):
    writer = ShardedWriter(tmp_path / "out", max_shard_bytes=1)

    def fill():
        with writer:
            writer.add("a", torch.ones(2))
            writer.add("b", torch.ones(2))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fill()
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        writer.add("c", torch.ones(2))


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "full"):
        with pytest.raises(ConfigError, match="Choose another output folder"):
            ShardedWriter(tmp_path / name)
    ShardedWriter(tmp_path / "empty")
    ShardedWriter(tmp_path / "new" / "deeper")


def test_misuse_is_refused(tmp_path):
    writer = ShardedWriter(tmp_path / "out")
    with pytest.raises(ValueError, match="no tensor was added"):
        writer.close()
    writer.add("a", torch.ones(2))
    with pytest.raises(ValueError, match="added twice"):
        writer.add("a", torch.ones(2))
    with pytest.raises(ValueError, match="not a tensor name"):
        writer.add("../a", torch.ones(2))
    with pytest.raises(ValueError, match="cannot store"):
        writer.add("b", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="positive"):
        ShardedWriter(tmp_path / "other", max_shard_bytes=0)
