import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.core.model_space import align
from evomerge.errors import SourceError
from evomerge.merging.source import TensorSource
from evomerge.storage.model_folder import ModelFolder

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors():
    gen = torch.Generator().manual_seed(0)
    return {
        EMBED: torch.randn(6, 4, generator=gen),
        "model.norm.weight": torch.randn(4, generator=gen).bfloat16(),
    }


def sharded(folder, shards, weight_map=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for name, content in shards.items():
        save_file(content, folder / name)
    if weight_map is None:
        weight_map = {name: shard for shard, content in shards.items() for name in content}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_reads_as_it_was_saved(tmp_path, save_model):
    folder = ModelFolder("a", save_model(tmp_path / "m", tensors(), LLAMA))
    source: TensorSource = folder
    assert folder.architecture == "LlamaForCausalLM"
    assert set(folder.header().tensors) == set(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(source.read(name), tensor)
        assert torch.equal(source.read_range(name, 1, 3), tensor.flatten()[1:3])
        assert source.exact_delta(name) is None


def test_shards_and_a_bare_file_give_the_digest_of_a_single_file(tmp_path, save_model):
    one = ModelFolder("a", save_model(tmp_path / "one", tensors(), LLAMA))
    shards = {f"model-{i}.safetensors": {n: t} for i, (n, t) in enumerate(tensors().items())}
    many = ModelFolder("b", sharded(tmp_path / "many", shards))
    bare = ModelFolder("c", tmp_path / "one" / "model.safetensors")
    assert one.digest == many.digest == bare.digest
    assert one.fingerprint() == many.fingerprint() == bare.fingerprint()
    assert bare.config == {}
    assert bare.architecture == ""
    assert torch.equal(many.read(EMBED), tensors()[EMBED])


@pytest.mark.parametrize("name", ["value", "name", "dtype", "shape"])
def test_the_digest_changes_with(name, tmp_path, save_model):
    before = ModelFolder("a", save_model(tmp_path / "a", {"x": torch.arange(4.0)}))
    change = {
        "value": {"x": torch.arange(4.0) + 1},
        "name": {"y": torch.arange(4.0)},
        "dtype": {"x": torch.arange(4.0).view(torch.int32)},
        "shape": {"x": torch.arange(4.0).reshape(2, 2)},
    }[name]
    assert before.digest != ModelFolder("a", save_model(tmp_path / "b", change)).digest


CONFIGS = {
    "quantised": ({"quantization_config": {"bits": 4}}, "dequantise"),
    "quantised_part": ({"text_config": {"quantization_config": {"bits": 4}}}, "dequantise"),
    "compressed": ({"compression_config": {"format": "pack"}}, "dequantise"),
    "remote_code": ({"auto_map": {"AutoModel": "evil.Model"}}, "trust_remote_code"),
    "remote_code_in_a_list": ({"parts": [{"auto_map": {"AutoModel": "x.Y"}}]}, "trust_remote_code"),
    "custom_pipeline": ({"custom_pipelines": {"x": {"impl": "x.py"}}}, "trust_remote_code"),
    "hub_kernel": ({"attn_implementation": "evil/kernel"}, "Remove the key"),
    "hub_kernel_private": ({"_attn_implementation": "evil/kernel@v1"}, "Remove the key"),
    "too_large": ({"x": "x" * 1_000_001}, "larger than 1,000,000 bytes"),
    "not_an_object": ([], "expected a JSON object"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_unsafe_config_is_refused_naming_the_file(case, tmp_path, save_model):
    config, message = CONFIGS[case]
    folder = save_model(tmp_path / "m", tensors())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message) as error:
        ModelFolder("a", folder)
    assert "config.json" in str(error.value)


def test_config_nested_past_pythons_own_depth_is_not_a_crash(tmp_path, save_model):
    folder = save_model(tmp_path / "m", tensors())
    for depth in (500, 900, 5000, 100_000):
        (folder / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        try:
            ModelFolder("a", folder)
        except SourceError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017  either way is fine


def test_remote_code_is_accepted_when_trusted(tmp_path, save_model):
    folder = save_model(tmp_path / "m", tensors(), {"auto_map": {"AutoModel": "my.Model"}})
    assert ModelFolder("a", folder, trust_remote_code=True).specs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "neither model.safetensors nor", id="nothing"),
        pytest.param({"pytorch_model.bin": b"x"}, "Convert them to safetensors", id="bin"),
        pytest.param({"model.pt": b"x"}, "Convert them to safetensors", id="pt"),
        pytest.param({"model.pth": b"x"}, "Convert them to safetensors", id="pth"),
        pytest.param({"last.ckpt": b"x"}, "Convert them to safetensors", id="ckpt"),
        pytest.param({"other.safetensors": b"x"}, "Found other.safetensors", id="other_name"),
    ],
)
def test_a_folder_without_safetensors_weights_is_refused(files, message, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        ModelFolder("a", tmp_path)


def test_paths_that_are_no_model_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, message in [
        ("missing", "Check the path"),
        ("missing.safetensors", "Check the path"),
        ("empty", "no config.json"),
        ("model.bin", "Convert them to safetensors"),
        ("notes.txt", "neither a model folder"),
        ("pipe.safetensors", "not a regular file"),
    ]:
        with pytest.raises(SourceError, match=message):
            ModelFolder("a", tmp_path / name)


@pytest.mark.parametrize(
    "shard",
    [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "sub/evil.safetensors",
        "..safetensors/../x.safetensors",
        "a..safetensors",
        "evil.bin",
        "evil.safetensors\n",
        "evil\0.safetensors",
        "ev il.safetensors",
        "",
        7,
        None,
    ],
)
def test_a_bad_shard_name_is_refused(shard, tmp_path):
    folder = sharded(tmp_path / "m", {"a.safetensors": tensors()}, {EMBED: shard})
    with pytest.raises(SourceError, match=r"index.json: weight_map\["):
        ModelFolder("a", folder)


BOTH = {"a.safetensors": {"x": torch.ones(1)}, "b.safetensors": {"y": torch.ones(1)}}
TWICE = {"a.safetensors": {"x": torch.ones(1)}, "b.safetensors": {"x": torch.ones(1)}}
INDEXES = {
    "missing_shard": (BOTH, {"x": "a.safetensors", "y": "c.safetensors"}, "c.safetensors"),
    "missing_tensor": (
        BOTH,
        {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"},
        "no shard has it",
    ),
    "wrong_shard": (BOTH, {"x": "b.safetensors", "y": "a.safetensors"}, "but it is in"),
    "tensor_in_two_shards": (
        {**TWICE, "b.safetensors": {"x": torch.ones(1), "y": torch.ones(1)}},
        {"x": "a.safetensors", "y": "b.safetensors"},
        "two shards",
    ),
    "tensor_left_out": (
        {"a.safetensors": {"x": torch.ones(1), "hidden": torch.ones(1)}},
        {"x": "a.safetensors"},
        "leaves out",
    ),
    "bad_tensor_name": (BOTH, {"../x": "a.safetensors"}, "weight_map names a tensor"),
    "empty": (BOTH, {}, "weight_map must map"),
    "not_a_map": (BOTH, ["x"], "weight_map must map"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_disagrees_with_the_shards_is_refused(case, tmp_path):
    shards, weight_map, message = INDEXES[case]
    folder = sharded(tmp_path / "m", shards, weight_map)
    with pytest.raises(SourceError, match=message):
        ModelFolder("a", folder)


def test_an_index_with_duplicate_keys_is_refused(tmp_path):
    folder = sharded(tmp_path / "m", BOTH)
    text = '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match="appears twice"):
        ModelFolder("a", folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(name, tmp_path, save_model):
    folder = save_model(tmp_path / "m", tensors(), LLAMA)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(SourceError, match="outside the model folder"):
        ModelFolder("a", folder)


def test_a_hub_cache_snapshot_is_read_through_its_links(tmp_path, save_model):
    made = save_model(tmp_path / "m", tensors(), LLAMA)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, name in enumerate(("model.safetensors", "config.json")):
        (made / name).rename(repository / "blobs" / f"blob{number}")
        (snapshot / name).symlink_to(f"../../blobs/blob{number}")
    (tmp_path / "alias").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "alias"):
        assert torch.equal(ModelFolder("a", path).read(EMBED), tensors()[EMBED])


@pytest.mark.parametrize(
    "bad",
    [
        {"w": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)},
        {"w": torch.zeros(4, dtype=torch.float8_e5m2)},
        {"a.qweight": torch.zeros(4, 4, dtype=torch.int32)},
        {"a.weight": torch.zeros(4, 4, dtype=torch.int8)},
        {"a.weight": torch.zeros(16, 1, dtype=torch.uint8)},
        {"a.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)},
        {"a.weight_scale": torch.zeros(4)},
    ],
    ids=lambda bad: f"{next(iter(bad))}-{next(iter(bad.values())).dtype}",
)
def test_packed_quantised_tensors_are_refused(bad, tmp_path, save_model):
    folder = save_model(tmp_path / "m", {**tensors(), **bad})
    with pytest.raises(SourceError, match="packed quantised"):
        ModelFolder("a", folder).fingerprint()


def test_integer_buffers_are_not_mistaken_for_quantised(tmp_path, save_model):
    extra = {
        "attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "position_ids": torch.arange(5)[None],
        "bn.num_batches_tracked": torch.tensor(3),
    }
    model = ModelFolder("a", save_model(tmp_path / "m", {**tensors(), **extra}))
    assert model.fingerprint().keys() == {*tensors(), *extra}
    assert model.read("bn.num_batches_tracked").item() == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_fingerprint_refuses_what_is_not_finite(value, tmp_path, save_model):
    bad = torch.ones(3, 3)
    bad[1, 2] = value
    model = ModelFolder("a", save_model(tmp_path / "m", {**tensors(), "bad.weight": bad}))
    for use in (model.fingerprint, model.header, lambda: model.digest):
        with pytest.raises(SourceError, match=r"m/model.safetensors: tensor bad.weight holds"):
            use()


def test_a_tied_head_reads_the_embedding(tmp_path, save_model):
    config = {**LLAMA, "tie_word_embeddings": True}
    model = ModelFolder("a", save_model(tmp_path / "m", tensors(), config))
    assert model.header().tied == {HEAD: EMBED}
    assert torch.equal(model.read(HEAD), tensors()[EMBED])
    assert torch.equal(model.read_range(HEAD, 3, 9), tensors()[EMBED].flatten()[3:9])


@pytest.mark.parametrize("is_same", [True, False])
def test_a_stored_head_is_tied_when_its_bytes_are_the_embeddings(is_same, tmp_path, save_model):
    head = tensors()[EMBED].clone()
    head[0, 0] += 0 if is_same else 1
    config = {**LLAMA, "tie_word_embeddings": True}
    path = save_model(tmp_path / "m", {**tensors(), HEAD: head}, config)
    assert ModelFolder("a", path).header().tied == ({HEAD: EMBED} if is_same else {})
    model = ModelFolder("a", path)
    model.fingerprint()
    assert model.tied == ({HEAD: EMBED} if is_same else {})
    assert torch.equal(model.read(HEAD), head)


def test_a_missing_tensor_is_named_with_its_nearest(tmp_path, save_model):
    model = ModelFolder("a", save_model(tmp_path / "m", tensors()))
    with pytest.raises(SourceError, match=r"Did you mean 'model.norm.weight'"):
        model.read("model.norms.weight")
    with pytest.raises(SourceError, match="has no tensor"):
        model.read_range("x", 0, 1)


def test_a_kept_fingerprint_saves_reading_and_must_fit(tmp_path, save_model):
    path = save_model(tmp_path / "m", tensors(), LLAMA)
    first = ModelFolder("a", path)
    again = ModelFolder("a", path)
    again.restore_fingerprint(dict.fromkeys(first.fingerprint(), "0" * 32))
    assert set(again.header().digests.values()) == {"0" * 32}
    with pytest.raises(SourceError, match="Delete the kept digests"):
        ModelFolder("a", path).restore_fingerprint({"x": ""})


def test_the_stat_signature_survives_json_and_sees_a_change(tmp_path, save_model):
    path = save_model(tmp_path / "m", tensors(), LLAMA)
    before = ModelFolder("a", path).stat_signature()
    assert json.loads(json.dumps(before)) == before == ModelFolder("a", path).stat_signature()
    assert [row[0] for row in before] == ["config.json", "model.safetensors"]
    os.utime(path / "model.safetensors", ns=(1, 1))
    assert ModelFolder("a", path).stat_signature() != before


def test_the_real_story_model_opens(shared_data):
    path = shared_data / "stories260k_hf"
    model = ModelFolder("stories", path)
    header = model.header()
    assert header.architecture == "LlamaForCausalLM"
    assert header.tied.get(HEAD, EMBED) == EMBED
    expected = load_file(path / "model.safetensors")
    assert set(header.tensors) == set(expected)
    assert all(torch.equal(model.read(name), expected[name]) for name in expected)


def test_the_real_digits_experts_align(shared_data):
    names = ("base", "expert_low", "expert_high")
    models = [ModelFolder(n, shared_data / "digits_experts" / n) for n in names]
    space = align([model.header() for model in models], has_base=True)
    assert space.n_elements > 30_000
    assert len({model.digest for model in models}) == 3
    assert isinstance(models[0].path, Path)
