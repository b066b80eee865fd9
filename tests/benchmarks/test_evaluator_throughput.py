import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_smoke_run_prints_every_figure():
    command = [sys.executable, "benchmarks/evaluator_throughput.py", "--smoke"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 0 <= figures["overhead_share"] < 1
    if "lm-eval is not installed" in done.stdout:
        assert "scores_identical" not in figures
        return
    assert figures["scores_identical"] is True
    for name in ("multiple_choice", "multiple_choice_apart", "generation", "generation_shared"):
        assert figures[f"{name}_ratio"] > 0
