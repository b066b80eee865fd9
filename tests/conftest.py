"""Fixtures for tests that drive the whole product on tiny models."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["EVOMERGE_CACHE"] = tempfile.mkdtemp(prefix="evomerge-test-cache-")

import pytest
from hypothesis import settings

from tests.e2e.tiny_run import TinyModels, build_tiny_models

atexit.register(shutil.rmtree, os.environ["EVOMERGE_CACHE"], ignore_errors=True)

# Other processes may hold the cores for longer than hypothesis' 200 ms. Where a run of the tests
# decides over a change (CI) the examples are always the same ones: a rare draw that fails belongs
# to no change in particular, and is found by everybody else's runs.
settings.register_profile("busy machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("busy machine")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> TinyModels:
    """A base and two experts (2-layer ViTs of 2,000 parameters) with an evaluator module."""
    return build_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs and data sets of other projects, if it is here."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    return SHARED
