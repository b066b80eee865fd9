"""benchmarks/real_llm.py: a pretrained language model from fine-tunes to the exported merge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.problems.smollm2 import skills, why_missing

ROOT = Path(__file__).parents[2]
MODELS = ("base", "operations", "intents", "average", "merged")


@pytest.fixture(scope="module", autouse=True)
def _needs_the_model():
    if why := why_missing():
        pytest.skip(why)


def test_no_prompt_is_in_two_parts():
    for skill in skills(400, 200, 200):
        parts = (skill.train, skill.calibration, skill.test)
        prompts = [row["prompt"].casefold() for part in parts for row in part]
        assert len(prompts) == len(set(prompts)) == 800


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes of CPU time, on a machine that may be busy
def test_a_pretrained_language_model_goes_the_whole_road(tmp_path):
    command = [sys.executable, "benchmarks/real_llm.py", "--smoke", "--dir", str(tmp_path)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert tuple(figures["mean"]) == MODELS
    assert figures["n"] == {"operations": 24, "intents": 24}
    assert figures["results_at_kill"] >= figures["evaluations"] // 2
    assert figures["mean"]["operations"]["operations"] > figures["mean"]["base"]["operations"]
    for name in MODELS:
        for column in ("operations", "intents", "mean"):
            low, high = figures["interval"][name][column]
            assert 0 <= low <= figures["mean"][name][column] <= high <= 1
