import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from evomerge.evaluation.subject import Subject

from . import tiny_models


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER)
    return tiny_models.save(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory):
    model = tiny_models.make("GPT2LMHeadModel", "GPT2Config", tiny_models.GPT2)
    return tiny_models.save(model, tmp_path_factory.mktemp("gpt2"), bos=False)


@pytest.fixture(scope="session")
def llama(llama_folder):
    return Subject.load(llama_folder, auto_class="AutoModelForCausalLM")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder):
    return Subject.load(gpt2_folder, auto_class="AutoModelForCausalLM")
