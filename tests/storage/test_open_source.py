import pytest
import torch

from evomerge.errors import SourceError
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.open_source import is_adapter_folder, open_source

Q = "model.q_proj.weight"
FACTORS = {
    "model.q_proj.lora_A.weight": torch.ones(2, 4),
    "model.q_proj.lora_B.weight": torch.ones(6, 2),
}


@pytest.fixture
def model(tmp_path, save_model):
    return save_model(tmp_path / "model", {Q: torch.ones(6, 4)})


@pytest.fixture
def adapter(tmp_path, save_adapter):
    return save_adapter(tmp_path / "adapter", FACTORS, base_model_name_or_path="org/base")


def test_a_model_folder_or_file_is_opened_as_such(model):
    for path in (model, model / "model.safetensors"):
        source = open_source("a", path)
        assert isinstance(source, ModelFolder)
        assert source.id == "a"
        assert not is_adapter_folder(path)


def test_an_adapter_folder_goes_on_the_given_base(model, adapter):
    base = ModelFolder("base", model)
    source = open_source("a", adapter, base=base)
    assert isinstance(source, LoraSource)
    assert source.base is base
    assert source.exact_delta(Q) is not None


def test_an_adapter_folder_without_base_is_refused_naming_its_base(adapter):
    with pytest.raises(SourceError, match="adapter on 'org/base'"):
        open_source("a", adapter)


def test_a_lora_on_the_merges_base_shares_it(model, adapter):
    base = ModelFolder("base", model)
    source = open_source("a", model, lora=adapter, base=base)
    assert isinstance(source, LoraSource)
    assert source.base is base
    assert source.exact_delta(Q) is not None


def test_a_lora_on_another_model_knows_no_exact_delta(model, adapter, tmp_path, save_model):
    other = ModelFolder("base", save_model(tmp_path / "other", {Q: torch.zeros(6, 4)}))
    for base in (other, None):
        source = open_source("a", model, lora=adapter, base=base)
        assert isinstance(source, LoraSource)
        assert source.exact_delta(Q) is None
        assert torch.equal(source.read(Q), torch.full((6, 4), 1.0 + 2 * 2))


def test_a_folder_that_is_both_is_ambiguous(model, save_adapter):
    save_adapter(model, FACTORS)
    with pytest.raises(SourceError, match="both a model and a LoRA adapter"):
        open_source("a", model)
    assert isinstance(open_source("a", model, lora=model), LoraSource)


def test_trust_reaches_the_model(tmp_path, save_model):
    path = save_model(tmp_path / "m", {Q: torch.ones(2, 2)}, {"auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(SourceError, match="trust_remote_code"):
        open_source("a", path)
    assert open_source("a", path, trust_remote_code=True).id == "a"
