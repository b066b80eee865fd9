"""The whole road of `evomerge quickstart`, through the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

EVALUATIONS = 30


def start(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", "quickstart", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def quickstart(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def first(place):
    """The figures of a first run, as JSON."""
    code, out, err = quickstart(place, "--evaluations", str(EVALUATIONS), "--json")
    assert code == 0, err
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1])


def means(model):
    return np.array([model["search"]["mean"], model["held_out"]["mean"]])


def test_it_reports_every_figure(first):
    assert first["evaluations"] == EVALUATIONS
    assert list(first["parents"]) == ["base", "expert low", "expert high"]
    assert list(first["best"]) == ["low", "high"]
    assert all(n >= 200 for part in first["n"].values() for n in part.values())
    models = [*first["parents"].values(), first["average"], first["knee"], *first["front"]]
    for model in models:
        for part in ("search", "held_out"):
            assert 0.0 <= model[part]["low"] <= 1.0
            assert 0.0 <= model[part]["high"] <= 1.0
            both = (model[part]["low"] + model[part]["high"]) / 2
            assert model[part]["mean"] == pytest.approx(both)
        low, high = model["held_out_interval"]
        assert low <= model["held_out"]["mean"] <= high
    gain = first["gain"]
    best = max(first["parents"].items(), key=lambda item: item[1]["search"]["mean"])
    assert gain["over"] == best[0]
    wanted = first["knee"]["held_out"]["mean"] - best[1]["held_out"]["mean"]
    assert gain["held_out"] == pytest.approx(wanted)
    assert gain["interval"][0] < gain["held_out"] < gain["interval"][1]
    assert first["seconds"]["total"] > 0.0


def test_the_specialists_are_specialists(first):
    parents = first["parents"]
    assert parents["expert low"]["held_out"]["low"] > parents["base"]["held_out"]["low"]
    assert parents["expert high"]["held_out"]["high"] > parents["base"]["held_out"]["high"]


def test_the_front_is_one_and_the_knee_is_on_it(first):
    points = [(m["search"]["low"], m["search"]["high"]) for m in first["front"]]
    assert points == sorted(points, reverse=True)
    highs = [high for _, high in points]
    assert highs == sorted(highs)
    assert first["knee"]["candidate"] in {m["candidate"] for m in first["front"]}


def test_the_knee_beats_every_parent_and_the_average_on_images_it_never_saw(first):
    knee = means(first["knee"])
    for parent in first["parents"].values():
        assert (knee > means(parent)).all()
    assert (knee > means(first["average"])).all()
    for part in ("search", "held_out"):
        areas = first["hypervolume"][part]
        assert areas["front"] > max(areas["parents"], areas["average"])


def test_the_exported_knee_loads_and_scores_as_reported(first, place):
    exported = first["exported"]
    assert exported["matches"] is True
    assert exported["written"] is True
    model = AutoModelForImageClassification.from_pretrained(place / exported["folder"])
    for skill in ("low", "high"):
        with np.load(place / first["models"] / f"{skill}-held-out.npz") as data:
            with torch.inference_mode():
                logits = model(pixel_values=torch.tensor(data["pixel_values"])).logits
            accuracy = float((logits.argmax(-1).numpy() == data["labels"]).mean())
        assert accuracy == pytest.approx(first["knee"]["held_out"][skill])
        assert accuracy == exported["held_out"][skill]


def test_the_picture_is_a_png(first, place):
    data = (place / first["picture"]).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_a_second_call_uses_everything_again_and_says_the_same(first, place):
    kept = {
        path: path.stat().st_mtime_ns
        for path in (place / "populations").rglob("*")
        if path.is_file() and path.name != "front.png" and "lock" not in path.name
    }
    code, out, err = quickstart(place, "--evaluations", str(EVALUATIONS))
    assert code == 0, err
    assert "using the trained models" in err
    assert "already searched" in err
    assert "already exported" in err
    assert "training" not in err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    lines = [line.split() for line in out.splitlines()]
    for model, label in ((first["knee"], "knee"), (first["average"], "average")):
        row = next(line for line in lines if label in line[:2] and line[-1].isdigit())
        numbers = [
            f"{value:.3f}" for part in ("search", "held_out") for value in model[part].values()
        ]
        assert row[-7:-1] == numbers


@pytest.mark.slow
def test_ctrl_c_drains_and_a_larger_budget_continues(first, place):
    budget = str(EVALUATIONS + 30)
    process = start(place, "--evaluations", budget)
    for line in process.stderr:
        if f"/{budget}" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"evomerge quickstart --evaluations {budget}" in out
    code, out, err = quickstart(place, "--evaluations", budget, "--json")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["evaluations"] == int(budget)
    assert figures["hypervolume"]["search"]["front"] >= first["hypervolume"]["search"]["front"]
    assert figures["parents"] == first["parents"]
    if figures["knee"]["candidate"] != first["knee"]["candidate"]:
        assert figures["exported"]["folder"] != first["exported"]["folder"]


def test_a_budget_smaller_than_the_founders_is_refused(tmp_path):
    code, out, err = quickstart(tmp_path, "--evaluations", "3")
    assert code == 2
    assert out == ""
    assert err.startswith("ConfigError: --evaluations is 3, must be at least 10")
    assert list(tmp_path.iterdir()) == []
