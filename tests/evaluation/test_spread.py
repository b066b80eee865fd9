"""A model divided over devices, as far as a machine without GPUs can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.evaluation.subject import Subject

TEXTS = [[1, 2, 3, 4, 5], [5, 4, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("spread") / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 64}
    LlamaForCausalLM(
        LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes)
    ).save_pretrained(place)
    return place


def load(folder: Path, **changes) -> Subject:
    return Subject.load(folder, auto_class="AutoModelForCausalLM", **changes)


def scores(subject: Subject) -> np.ndarray:
    return np.concatenate(subject.token_nll(TEXTS))


def test_one_large_enough_device_scores_as_ever(folder: Path) -> None:
    np.testing.assert_array_equal(scores(load(folder, spread={"cpu": 10**9})), scores(load(folder)))


def test_what_does_not_fit_on_the_devices_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit on 1 devices with 20,000 bytes"):
        load(folder, spread={"cpu": 20_000})


def test_a_model_with_hooks_between_devices_is_installed_and_scored_alike(folder: Path) -> None:
    import torch
    from accelerate import dispatch_model

    plain, hooked = load(folder), load(folder)
    parts = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(3))]
    places = dict.fromkeys([*parts, "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    hooked._loaded.model = dispatch_model(hooked.model, places, force_hooks=True)
    torch.manual_seed(1)
    tensors = {name: torch.randn_like(tensor) / 10 for name, tensor in plain.destinations().items()}
    for subject in (plain, hooked):
        subject.install(iter((name, tensor.clone()) for name, tensor in tensors.items()))
    np.testing.assert_array_equal(scores(hooked), scores(plain))
