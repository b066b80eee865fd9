import pytest
import torch

from evomerge.core.model_space import align
from evomerge.merging.source import TensorSource
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.renamed import Renamed, line_up_names

WORDS, QUERY = "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"
HEAD = "classifier.weight"


def encoder(seed, prefix=""):
    noise = torch.Generator().manual_seed(seed)
    shapes = {WORDS: (7, 4), QUERY: (4, 4)}
    return {f"{prefix}{name}": torch.randn(s, generator=noise) for name, s in shapes.items()}


@pytest.fixture
def bare(tmp_path, save_model):
    return ModelFolder("bare", save_model(tmp_path / "bare", encoder(0), {}))


@pytest.fixture
def tuned(tmp_path, save_model):
    tensors = encoder(1, "bert.") | {HEAD: torch.ones(3, 4)}
    return ModelFolder("tuned", save_model(tmp_path / "tuned", tensors, {}))


def test_a_fine_tune_gets_the_names_of_its_bare_base(bare, tuned):
    named: TensorSource = line_up_names(tuned, bare)
    header = named.header()
    assert set(header.tensors) == {WORDS, QUERY, HEAD}
    assert all(spec.name == name for name, spec in header.tensors.items())
    assert header.digests[QUERY] == tuned.fingerprint()[f"bert.{QUERY}"]
    assert torch.equal(named.read(QUERY), encoder(1)[QUERY])
    assert torch.equal(named.read_range(QUERY, 3, 9), encoder(1)[QUERY].flatten()[3:9])
    assert torch.equal(named.read(HEAD), torch.ones(3, 4))
    assert named.exact_delta(QUERY) is None
    assert named.factors(QUERY) is None
    assert (named.id, named.digest) == (tuned.id, tuned.digest)
    space = align([bare.header(), header], has_base=True)
    assert [tensor.spec.name for tensor in space.merged] == [WORDS, QUERY]
    assert set(space.left_out) == {HEAD}


def test_a_bare_expert_gets_the_prefix_of_its_base(bare, tuned):
    named = line_up_names(bare, tuned)
    assert isinstance(named, Renamed)
    assert set(named.header().tensors) == {f"bert.{WORDS}", f"bert.{QUERY}"}
    assert torch.equal(named.read(f"bert.{QUERY}"), encoder(0)[QUERY])


def test_names_that_fit_are_left_alone(tuned, tmp_path, save_model):
    other = ModelFolder("o", save_model(tmp_path / "o", encoder(2, "bert."), {}))
    assert line_up_names(other, tuned) is other


def test_other_architectures_are_left_to_the_alignment(tuned, tmp_path, save_model):
    other = ModelFolder("o", save_model(tmp_path / "o", {"model.norm.weight": torch.ones(4)}, {}))
    assert line_up_names(other, tuned) is other
