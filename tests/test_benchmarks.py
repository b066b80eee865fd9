"""The merge benchmarks run from their command lines and print what their readers expect."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ceiling import variants
from benchmarks.merge_cases import CASES
from benchmarks.synthetic_models import RELATIVE_CHANGE, SIZES, build_models
from evomerge.storage.model_folder import ModelFolder

ROOT = Path(__file__).parents[1]
BY_METHOD = ("ms", "gb_per_s", "ratio_to_ceiling", "install_ms", "peak_rss_mb", "bytes_moved")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def run(script: str, *arguments: str) -> dict:
    command = [sys.executable, f"benchmarks/{script}", "--size", "tiny", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_merge_throughput_prints_every_figure_by_method(folder):
    names = ["linear", "slerp", "ties", "dare_ties"]
    arguments = ["--experts", "2", "--repetitions", "1", "--cold", "linear"]
    figures = run("merge_throughput.py", *arguments, "--dir", str(folder), "--operators", *names)
    for key in BY_METHOD:
        assert list(figures[key]) == names, key
        assert all(math.isfinite(value) and value > 0 for value in figures[key].values()), key
    assert set(figures["ratio_to_mergekit"]) <= set(names)
    assert "ours cold" in figures["disk"]["linear"]
    assert "3 sources, numba fused" in figures["ceiling_gb_per_s"]
    assert figures["bytes_moved"]["linear"] == 2 * figures["n_elements"] * (3 + 1)


def test_population_merge_prints_every_figure_by_population(folder):
    arguments = ["--experts", "2", "--repetitions", "1", "--populations", "1", "3"]
    figures = run("population_merge.py", *arguments, "--dir", str(folder))
    for key in ("ms_per_candidate", "ms_per_candidate_apart", "speed_up", "gb_per_s"):
        assert list(figures[key]) == ["1", "3"], key
        assert all(value > 0 for value in figures[key].values()), key


def test_models_are_the_same_wherever_they_are_made(tmp_path):
    one, two = (build_models(tmp_path / name, "tiny", 1) for name in ("one", "two"))
    digests = [[ModelFolder("m", path).digest for path in models.folders] for models in (one, two)]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


def test_an_expert_is_a_hundredth_away_from_its_base(tmp_path):
    models = build_models(tmp_path, "tiny", 1)
    base, expert = (ModelFolder(path.name, path) for path in models.folders)
    for name in base.specs:
        a, b = base.read(name).float(), expert.read(name).float()
        assert float((b - a).norm() / a.norm()) == pytest.approx(RELATIVE_CHANGE, rel=0.2), name


def test_sizes_have_the_parameters_they_are_named_for():
    counts = {
        name: sum(math.prod(shape) for shape in size.shapes().values())
        for name, size in SIZES.items()
    }
    assert counts["125m"] == 134_105_856
    assert counts["500m"] == 494_710_272
    assert counts["1b"] == 1_100_048_384


@pytest.mark.parametrize("n_sources", [2, 3, 4, 5])
def test_every_variant_of_the_ceiling_is_the_same_sum(n_sources):
    torch.manual_seed(0)
    sources = [torch.randn(1001).bfloat16() for _ in range(n_sources)]
    coefficients = [0.3, -0.2, 0.5, 0.25, 0.1][:n_sources]
    exact = sum(c * s.double() for c, s in zip(coefficients, sources, strict=True))
    for name, weighted_sum in variants(n_sources, threads=1).items():
        out = torch.empty(1001, dtype=torch.bfloat16)
        weighted_sum(sources, coefficients, out)
        error = float((out.double() - exact).abs().max())
        assert error < (0.03 if name == "torch" else 0.01), name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_sides_merge_the_same_models(case):
    sources = case.sources(3)
    assert case.recipe(3).sources == sources
    if case.mergekit is not None:
        config = case.mergekit_config(3, {source: f"/models/{source}" for source in sources})
        named = {entry["model"] for entry in config["models"]} | {config.get("base_model")}
        assert named - {None} == {f"/models/{source}" for source in sources}
