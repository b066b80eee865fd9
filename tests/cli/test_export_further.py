"""`export --push-to-hub` with the real client against a hub on loopback, and `export --gguf`."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from evomerge.errors import PreflightError
from evomerge.export import verify_digest
from evomerge.export.gguf import CONVERTER, convert, find_converter
from tests.cli.command import assert_one_line, tree
from tests.e2e.tiny_run import evomerge as run_alone
from tests.export.hub_server import TOKEN, HubServer

NAME = "someone/tiny-merge"
# Of huggingface_hub with an httpx that is newer than it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def push(place, hub, evomerge, monkeypatch):
    """Export and push; the client knows the hub on loopback alone."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place.folder / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda *arguments: evomerge("export", "tiny", "--out", "merged", *arguments)


def digest_of(folder: Path) -> str:
    """Return the digest of an export's weights, checked against them."""
    verify_digest(folder)
    return json.loads((folder / "recipe.json").read_text())["weights_digest"]


def test_a_push_is_one_commit_of_the_whole_folder(push, hub, place):
    done = push("--push-to-hub", NAME, "--private", "--json")
    assert done.code == 0, done.err
    repo = hub.hub.repos[NAME]
    assert repo.private
    ((message, files),) = repo.commits
    assert message == "Add merged, a merge by evomerge"
    folder = place.folder / "merged"
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"model.safetensors", "README.md", "recipe.json", "config.json"} <= set(files)
    (row,) = json.loads(done.out)
    assert row["hub"]["url"] == f"{hub.address}/{NAME}"
    assert len(row["hub"]["commit"]) == 40
    assert "names models by path: " in done.err
    assert TOKEN not in done.out + done.err


@pytest.mark.slow
def test_the_usual_variables_name_the_hub(place, hub):
    env = {
        "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(place.folder / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = ("export", "tiny", "--out", "merged", "--push-to-hub", NAME)
    done = run_alone(*command, cwd=place.folder, env=env)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.address}/{NAME}  (commit " in done.stdout
    assert not hub.hub.repos[NAME].private


@pytest.mark.parametrize("at", ["/commit/", "/preupload/", "repos/create", "/objects/"])
def test_a_refused_push_leaves_the_export_whole(at, push, hub, place):
    hub.hub.breaks_at = at
    done = push("--push-to-hub", NAME)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    said = done.messages[-1]
    assert said.startswith(f"RunError: merged is whole, but was not pushed to {NAME}: ")
    assert said.endswith(f"hf upload {NAME} merged")
    parts = said.split(". Check the network")[0].split(": ")
    assert len(parts) == len(set(parts))  # a cause that says the same is not said twice
    assert TOKEN not in done.err
    assert digest_of(place.folder / "merged")
    assert not any(repo.commits for repo in hub.hub.repos.values())


def test_a_private_push_does_not_land_in_a_public_model(push, hub):
    assert push("--push-to-hub", NAME).code == 0
    done = push("--push-to-hub", NAME, "--private", "--out", "again")
    assert done.code == 3
    assert "is public and --private was asked for" in done.err
    assert len(hub.hub.repos[NAME].commits) == 1
    assert push("--push-to-hub", NAME, "--out", "third").code == 0
    assert len(hub.hub.repos[NAME].commits) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--push-to-hub", "no-organisation"], "expected ORG/NAME"),
        (["--push-to-hub", "org/name.git"], "expected ORG/NAME"),
        (["--private"], "belongs to --push-to-hub"),
        (["--push-to-hub", NAME, "--pick", "all"], "take one model"),
    ],
)
def test_pushes_that_make_no_sense_are_refused_before_the_export(arguments, says, push, hub, place):
    assert_one_line(push(*arguments), 2, (says,), "ConfigError")
    assert not (place.folder / "merged").exists()
    assert hub.hub.requests == []


def test_offline_or_without_a_token_nothing_is_exported(push, hub, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert_one_line(push("--push-to-hub", NAME), 2, ("hf auth login",), "ConfigError")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_one_line(push("--push-to-hub", NAME), 2, ("HF_HUB_OFFLINE is set",), "ConfigError")
    assert not (place.folder / "merged").exists()
    assert hub.hub.requests == []


# ---------------------------------------------------------------------- GGUF


def test_without_a_converter_the_export_is_whole_and_the_way_to_one_is_named(
    place, evomerge, monkeypatch
):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(place.folder))
    done = evomerge("export", "tiny", "--out", "merged", "--gguf", "f16")
    assert done.code == 3
    (line,) = (line for line in done.messages if line.startswith("PreflightError"))
    assert "merged is whole" in line
    assert "git clone https://github.com/ggml-org/llama.cpp" in line
    assert digest_of(place.folder / "merged")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gguf", "q4_k_m"], "llama-quantize"),
        (["--gguf", "f16", "--adapter"], "leave out --adapter"),
        (["--gguf-converter", "x"], "belongs to --gguf"),
        (["--gguf", "f16", "--ensemble", "2"], "take one model"),
    ],
)
def test_gguf_options_that_do_not_fit(arguments, says, place, evomerge):
    done = evomerge("export", "tiny", "--out", "merged", *arguments)
    assert_one_line(done, 2, (says,), "ConfigError")
    assert not (place.folder / "merged").exists()


def test_a_converter_that_fails_is_quoted_and_leaves_the_export_whole(place, evomerge):
    script = place.folder / CONVERTER
    script.write_text(
        "import sys\nsys.stderr.buffer.write(b'\\xff no text\\n')\n"
        "sys.exit('Model ViTForImageClassification is not supported')\n"
    )
    done = evomerge(
        "export", "tiny", "--out", "merged", "--gguf", "auto", "--gguf-converter", script
    )
    assert done.code == 3
    assert "Model ViTForImageClassification is not supported" in done.err
    assert "merged is whole" in done.err
    assert not list((place.folder / "merged").glob("*gguf*"))
    before = tree(place.folder / "merged")
    assert digest_of(place.folder / "merged")
    assert tree(place.folder / "merged") == before


def test_the_converter_is_looked_for_in_order(tmp_path, monkeypatch):
    for name in ("given", "variable", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONVERTER).write_text("#!/bin/sh\n")
        (tmp_path / name / CONVERTER).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "variable"))
    assert find_converter(tmp_path / "given").parent.name == "given"
    assert find_converter(None).parent.name == "variable"
    monkeypatch.delenv("LLAMA_CPP")
    assert find_converter(None).parent.name == "path"
    with pytest.raises(PreflightError, match="no such GGUF converter"):
        find_converter(tmp_path / "nothing")


@pytest.mark.slow
def test_the_real_converter_writes_the_tensors_of_the_export(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    try:
        find_converter(None)
    except PreflightError as error:
        pytest.skip(str(error))
    import torch

    model = tiny_llama(tmp_path / "llama")
    file = convert(tmp_path / "llama", "f32", None)
    assert file.name == "model-f32.gguf"
    read = gguf.GGUFReader(str(file))
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in read.tensors}
    weights = model.state_dict()
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(
        tensors["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"]
    )
    assert len(tensors) >= len(weights) - 1


def tiny_llama(folder: Path):
    """Write a two-layer Llama with a tokenizer of bytes, which llama.cpp knows; return it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary |= {letter: 259 + i for i, letter in enumerate("▁abcdefg")} | {"ab": 267}
    bpe = models.BPE(vocabulary, [("a", "b")], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizerFast", **special})
    )
    return model
