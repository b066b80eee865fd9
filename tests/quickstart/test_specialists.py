import hashlib
import json
import sys

import numpy as np
import pytest
import torch

from evomerge.errors import DataError, RunError
from evomerge.quickstart.specialists import (
    CONFIG,
    MARKER,
    MODELS,
    PARTS,
    SKILLS,
    Training,
    is_complete,
    load_exported,
    load_images,
    predict,
    prepare,
    read_images,
    split_images,
)

BRIEF = Training(base_steps=4, expert_steps=3, batch_size=16)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def silent(text):
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "models"
    assert prepare(folder, b"config", training=BRIEF, say=silent)
    return folder


def test_the_same_seed_gives_the_same_files(prepared, tmp_path):
    torch.manual_seed(99)  # another state of the global stream
    torch.set_num_threads(2)
    try:
        prepare(tmp_path / "again", b"config", training=BRIEF, say=silent)
    finally:
        torch.set_num_threads(1)
    assert digests(tmp_path / "again") == digests(prepared)


def test_another_seed_gives_other_weights(prepared, tmp_path):
    other = Training(seed=2, base_steps=1, expert_steps=1, batch_size=16)
    prepare(tmp_path / "other", b"config", training=other, say=silent)
    for name in MODELS:
        weights = (tmp_path / "other" / name / "model.safetensors").read_bytes()
        assert weights != (prepared / name / "model.safetensors").read_bytes()


def test_training_leaves_the_global_random_streams_alone(tmp_path):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(1), np.random.random()  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    brief = Training(base_steps=1, expert_steps=1, batch_size=4)
    prepare(tmp_path / "models", b"", training=brief, say=silent)
    assert (torch.rand(1), np.random.random()) == expected  # noqa: NPY002


def test_the_parts_are_disjoint_and_hold_every_image_once():
    images = load_images()
    parts = split_images(images, Training())
    rows = np.concatenate([part for skill in parts.values() for part in skill.values()])
    assert len(rows) == len(images) == 1797
    assert len(np.unique(rows)) == len(rows)
    for skill, digits in SKILLS.items():
        assert len(parts[skill]["search"]) >= 200
        assert len(parts[skill]["held-out"]) >= 200
        for part in parts[skill].values():
            assert set(images.labels[part]) == set(digits)


def test_no_image_is_in_two_files(prepared):
    seen = [read_images(prepared, skill, part) for skill in SKILLS for part in PARTS]
    pixels = np.concatenate([images.pixel_values.reshape(len(images), -1) for images in seen])
    assert len(np.unique(pixels, axis=0)) == len(pixels)


def test_pixels_are_float32_from_minus_one_to_one(prepared):
    images = read_images(prepared, "low", "search")
    assert images.pixel_values.dtype == np.float32
    assert images.pixel_values.shape == (Training().n_search, 1, 8, 8)
    assert images.pixel_values.min() == -1.0
    assert images.pixel_values.max() == 1.0


def test_the_folders_load_as_vision_transformers_without_dropout(prepared):
    for name in MODELS:
        model = load_exported(prepared / name)
        assert type(model).__name__ == "ViTForImageClassification"
        assert model.num_parameters() == 39_610
        assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.0
        classes = predict(model, read_images(prepared, "low", "search").pixel_values)
        assert classes.shape == (Training().n_search,)


def test_a_complete_folder_is_left_as_it_is(prepared):
    before = digests(prepared)
    times = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    said = []
    assert not prepare(prepared, b"config", training=BRIEF, say=said.append)
    assert said == []
    assert digests(prepared) == before
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == times


def test_a_changed_config_is_written_again_without_training(prepared):
    assert not prepare(prepared, b"another", training=BRIEF, say=silent)
    assert (prepared / CONFIG).read_bytes() == b"another"
    assert not prepare(prepared, b"config", training=BRIEF, say=silent)


def test_damage_and_other_settings_make_a_folder_incomplete(prepared, tmp_path):
    assert is_complete(prepared, BRIEF)
    assert not is_complete(prepared, Training())
    assert not is_complete(tmp_path / "missing", BRIEF)
    marker = prepared / MARKER
    whole = marker.read_bytes()
    for broken in (b"", b"[]", b"{", json.dumps({"training": {}}).encode()):
        marker.write_bytes(broken)
        assert not is_complete(prepared, BRIEF)
    marker.write_bytes(whole)
    weights = prepared / "low" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not is_complete(prepared, BRIEF)
    assert prepare(prepared, b"config", training=BRIEF, say=silent)
    assert weights.read_bytes() == data


def test_a_folder_with_something_else_in_it_is_never_replaced(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        prepare(tmp_path / "models", b"", training=BRIEF, say=silent)
    assert (tmp_path / "models" / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_training_leaves_nothing_behind(tmp_path):
    def interrupt(text):
        if "fine-tuning" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "models", b"", training=BRIEF, say=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'evomerge\[quickstart\]'"):
        load_images()
