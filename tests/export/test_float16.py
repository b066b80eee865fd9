"""Numbers beyond float16: kept finite, counted, and named in card and manifest."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.export import CardFacts, ParentModel, export_candidate
from evomerge.merging.fused import cast
from evomerge.merging.materialize import materialize
from evomerge.storage.model_folder import ModelFolder


@pytest.fixture
def merge(tmp_path):
    """Two bare float32 models; `same` is copied, the mean of `large` passes float16's limit."""
    large = torch.tensor([1.0, 7e4, -9e4, 6e4])
    for name, factor in (("one", 1.0), ("two", 1.2)):
        tensors = {"large": factor * large, "same": torch.tensor([[1e5, 2.0]])}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    sources = {path.stem: ModelFolder(path.stem, path) for path in paths}
    space = align([source.header() for source in sources.values()], has_base=False)
    parents = tuple(
        ParentModel(id=path.stem, model=str(path), path=path, digest="d" * 32) for path in paths
    )
    return {
        "recipe": Recipe("linear", space.sources, {"weights": np.array([[0.5, 0.5]])}),
        "space": space,
        "sources": sources,
        "derived": None,
        "donor": paths[0],
        "card": CardFacts(title="A merge", parents=parents),
    }


def test_what_lies_beyond_float16_is_clamped_and_reported(merge, tmp_path):
    export_candidate(tmp_path / "out", **merge, dtype="float16")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["large"].tolist()[1:] == [65504.0, -65504.0, 65504.0]
    assert tensors["same"].tolist() == [[65504.0, 2.0]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["at_float16_limit"] == {"large": 3, "same": 1}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 elements of 2 tensors are at the limit of float16, ±65504" in card


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_other_dtypes_have_nothing_to_report(merge, tmp_path, dtype):
    export_candidate(tmp_path / "out", **merge, dtype=dtype)
    assert "at_float16_limit" not in json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "limit of float16" not in (tmp_path / "out" / "README.md").read_text()


def test_a_cast_leaves_infinities_and_other_dtypes_alone(merge):
    values = torch.tensor([float("inf"), -float("inf"), 7e4, -1.5])
    assert cast(values, torch.float16).tolist() == [float("inf"), -float("inf"), 65504.0, -1.5]
    assert torch.equal(cast(values, torch.bfloat16), values.to(torch.bfloat16))
    made = dict(
        materialize(merge["recipe"], merge["space"], merge["sources"], out_dtype=torch.float16)
    )
    assert all(tensor.isfinite().all() for tensor in made.values())
