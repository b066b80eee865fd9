from __future__ import annotations

from collections.abc import Iterator

import pytest

from evomerge.runtime.ray_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One private Ray cluster for all tests of a session; pools use it and leave it running."""
    started = Cluster(None, 2)
    yield started
    started.close()
