import json
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from evomerge.errors import SourceError
from evomerge.storage.safetensors_file import SafetensorsFile, is_tensor_name

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **extra):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}


def deep(n):
    return b"[" * n + b"]" * n


A = json.dumps(entry()).encode()
HOSTILE = {
    "duplicate_key": (b'{"a": ' + A + b', "a": ' + A + b"}", 8, "appears twice"),
    "duplicate_inner_key": (
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        8,
        "appears twice",
    ),
    "not_json": (b"{nope", 8, "not valid JSON"),
    "not_utf8": (b'{"\xff": ' + A + b"}", 8, "not valid JSON"),
    "not_an_object": (b"[]", 0, "expected a JSON object"),
    "nested_too_deeply": (deep(200_000), 0, "nested too deeply|not valid JSON"),
    "nan_in_header": (b'{"a": NaN}', 0, "not valid JSON"),
    "empty_header": (b"", 0, "not valid JSON"),
    "no_tensors": ({"__metadata__": {"format": "pt"}}, 0, "holds no tensors"),
    "metadata_not_strings": ({"__metadata__": {"a": 1}, "a": entry()}, 8, "__metadata__"),
    "metadata_not_an_object": ({"__metadata__": [], "a": entry()}, 8, "__metadata__"),
    "name_climbs": ({"../../x": entry()}, 8, r"no '\.\.'"),
    "name_absolute": ({"/etc/x": entry()}, 8, "name may have"),
    "name_empty": ({"": entry()}, 8, "name may have"),
    "name_newline": ({"a\n": entry()}, 8, "name may have"),
    "name_nul": ({"a\0": entry()}, 8, "name may have"),
    "name_not_ascii": ({"ä": entry()}, 8, "name may have"),
    "name_too_long": ({"a" * 257: entry()}, 8, "name may have"),
    "entry_not_an_object": ({"a": 3}, 8, "needs exactly"),
    "entry_lacks_a_key": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "needs exactly"),
    "entry_has_another_key": ({"a": entry(extra=1)}, 8, "needs exactly"),
    "unknown_dtype": ({"a": entry("F4", (16,))}, 8, "dtype 'F4' is not supported"),
    "dtype_not_a_string": ({"a": entry(["F32"])}, 8, "is not supported"),
    "rank_too_high": ({"a": entry(shape=(1,) * 8 + (2,))}, 8, "at most 8"),
    "dimension_too_large": ({"a": entry(shape=(0, 2**60), offsets=(0, 0))}, 0, "below 2\\*\\*40"),
    "empty_but_unaddressable": (
        {"a": entry(shape=(0, 2**39, 2**39), offsets=(0, 0))},
        0,
        "too large to address",
    ),
    "negative_dimension": ({"a": entry(shape=(-2,))}, 8, "must be at most"),
    "boolean_dimension": ({"a": entry("F64", (True,))}, 8, "must be at most"),
    "fractional_dimension": ({"a": entry(shape=(2.0,))}, 8, "must be at most"),
    "shape_overflow": ({"a": entry(shape=(2**32, 2**32, 2))}, 8, "too large to address"),
    "three_offsets": ({"a": entry(offsets=(0, 8, 8))}, 8, "two integers"),
    "negative_offset": ({"a": entry(offsets=(-8, 0))}, 8, "two integers"),
    "reversed_offsets": ({"a": entry(offsets=(8, 0))}, 8, "cover -8"),
    "size_mismatch": ({"a": entry(shape=(3,))}, 8, "takes 12 bytes"),
    "hole_at_start": ({"a": entry(offsets=(4, 12))}, 12, "leaves a hole"),
    "hole_between": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "leaves a hole"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps"),
    "same_range_twice": ({"a": entry(), "b": entry()}, 8, "overlaps"),
    "trailing_bytes": ({"a": entry()}, 9, "trailing bytes"),
    "data_cut_short": ({"a": entry()}, 7, "cut short"),
    "too_many_tensors": (
        {f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(20_001)},
        0,
        "20,001 tensors",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_naming_the_file(case, raw_file):
    header, n_data, message = HOSTILE[case]
    path = raw_file(header, b"\0" * n_data)
    with pytest.raises(SourceError, match=message) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "only 0 bytes", id="empty_file"),
        pytest.param(b"\1\2", "only 2 bytes", id="two_bytes"),
        pytest.param((2**63).to_bytes(8, "little") + b"{}", "at most 16,000,000", id="huge_length"),
        pytest.param((10**8).to_bytes(8, "little") + b"{}", "at most 16,000,000", id="header_bomb"),
        pytest.param((100).to_bytes(8, "little") + b"{}", "cut short", id="header_cut_short"),
        pytest.param(b"PK\3\4" + b"\0" * 60, "not valid JSON|at most", id="zip"),
        pytest.param(b"\x80\x05\x95" + b"\xff" * 60, "at most", id="pickle"),
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        SafetensorsFile(path)


def test_a_missing_file_a_folder_a_link_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("missing", "folder", "link", "pipe"):
        with pytest.raises(SourceError, match=f"{name}.safetensors: cannot be read"):
            SafetensorsFile(tmp_path / f"{name}.safetensors")


def test_errors_name_the_path_that_the_user_gave(tmp_path):
    (tmp_path / "blob").write_bytes(b"")
    with pytest.raises(SourceError, match=r"model/model.safetensors: only 0 bytes"):
        SafetensorsFile(tmp_path / "blob", shown_as=Path("model/model.safetensors"))


def test_an_unknown_tensor_is_refused_with_the_nearest_name(tmp_path):
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for ask in (file.read, file.digest, lambda name: file.read_range(name, 0, 1)):
        with pytest.raises(SourceError, match=r"Did you mean 'norm.weight'"):
            ask("norms.weight")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4), (4, 4)])
def test_a_range_outside_the_tensor_is_refused(start, stop, tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="outside its 3 elements"):
        SafetensorsFile(tmp_path / "x.safetensors").read_range("a", start, stop)


def test_a_bool_tensor_with_another_byte_is_refused(raw_file):
    file = SafetensorsFile(raw_file({"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\2"))
    assert file.read_range("a", 0, 2).tolist() == [False, True]
    with pytest.raises(SourceError, match="BOOL tensor a"):
        file.read("a")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("position", [0, 4321, 9999])
def test_a_digest_refuses_nan_and_infinity_and_says_where(value, dtype, position, tmp_path):
    tensor = torch.randn(100, 100).to(dtype)
    tensor.view(-1)[position] = value
    save_file({"w": tensor}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=rf"tensor w holds \S+ at element {position} of 10000"):
        SafetensorsFile(tmp_path / "x.safetensors").digest("w")


def test_a_digest_is_of_dtype_shape_and_bytes_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.storage.safetensors_file._CHUNK_BYTES", 24)
    data = torch.arange(24, dtype=torch.float32)
    tensors = {
        "a": data,
        "same": data.clone(),
        "shape": data.reshape(4, 6).clone(),
        "dtype": data.view(torch.int32).clone(),
        "value": data + 1,
    }
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    digests = {name: file.digest(name) for name in tensors}
    assert digests["a"] == digests["same"]
    assert len(set(digests.values())) == 4
    monkeypatch.undo()
    assert digests["a"] == file.digest("a")
    assert len(digests["a"]) == 32


def test_a_misaligned_tensor_is_read_all_the_same(raw_file):
    expected = torch.tensor([1.5, -2.0])
    header = b'{"a": ' + A + b"}"
    for padding in range(8):
        path = raw_file(header + b" " * padding, expected.numpy().tobytes(), name=f"x{padding}")
        assert torch.equal(SafetensorsFile(path).read("a"), expected)


def test_reading_makes_no_copy_and_keeps_the_map_alive(tmp_path):
    save_file({"a": torch.randn(1000, 10)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    whole, part = file.read("a"), file.read_range("a", 10, 20)
    assert part.data_ptr() == whole.data_ptr() + 40
    assert part.untyped_storage().nbytes() == 40
    assert file.read("a") is whole
    expected = whole.clone()
    del file
    assert torch.equal(whole, expected)


@pytest.mark.parametrize(
    ("name", "is_fine"),
    [
        ("model.layers.0.q_proj.weight", True),
        ("a/b:c-d_1", True),
        ("", False),
        ("a..b", False),
        ("/a", False),
        ("a b", False),
        ("a\n", False),
    ],
)
def test_tensor_names_are_plain(name, is_fine):
    assert is_tensor_name(name) == is_fine


@st.composite
def tensor_sets(draw):
    names = draw(
        st.lists(
            st.from_regex(r"[a-zA-Z0-9_]{1,8}", fullmatch=True), min_size=1, max_size=5, unique=True
        )
    )
    tensors = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=4))
        dtype = draw(st.sampled_from(DTYPES))
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype == torch.bool:
            values = draw(st.lists(st.booleans(), min_size=n_bytes, max_size=n_bytes))
            tensors[name] = torch.tensor(values, dtype=dtype).reshape(shape)
        else:
            raw = bytearray(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
            flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(shape)
    return tensors


@settings(max_examples=100, deadline=None)
@given(tensors=tensor_sets(), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_any_tensors_survive_the_round_trip_like_in_safe_open(tensors, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file(tensors, path)
        file = SafetensorsFile(path)
        assert set(file.specs) == set(tensors)
        with safe_open(path, "pt") as reference:
            for name, tensor in tensors.items():
                read = file.read(name)
                assert read.dtype == tensor.dtype
                assert read.shape == tensor.shape == file.specs[name].shape
                bits = read.reshape(-1).view(torch.uint8)
                assert torch.equal(bits, tensor.reshape(-1).view(torch.uint8))
                other = reference.get_tensor(name)
                assert torch.equal(bits, other.reshape(-1).view(torch.uint8))
                assert file.specs[name].dtype == reference.get_slice(name).get_dtype()
                start, stop = sorted(round(at * tensor.numel()) for at in cut)
                part = file.read_range(name, start, stop)
                expected = tensor.reshape(-1)[start:stop]
                assert torch.equal(part.view(torch.uint8), expected.view(torch.uint8))


def test_the_real_digits_experts_read_like_safe_open(shared_data):
    for path in sorted(shared_data.glob("digits_experts/*/model.safetensors")):
        file = SafetensorsFile(path)
        with safe_open(path, "pt") as reference:
            assert set(file.specs) == set(reference.keys())
            assert all(torch.equal(file.read(n), reference.get_tensor(n)) for n in file.specs)
