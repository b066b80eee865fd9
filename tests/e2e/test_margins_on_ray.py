"""Margins come back from workers in other processes as they are, and lead to the same journal."""

import pytest

from tests.e2e.test_margins import folder, searched  # noqa: F401  (a fixture)


@pytest.mark.cluster
@pytest.mark.slow
def test_two_actors_tell_the_margins_of_one_process(folder):  # noqa: F811
    search = {"look_ahead": 4}
    here = searched(folder, "here", search=search)
    there = searched(folder, "there", search=search, runtime={"executor": "ray", "workers": 2})
    assert there.header()["margins"] is True
    for run in (here, there):
        assert run.scores.read_bytes() == here.scores.read_bytes()
        assert run.journal.read_bytes() == here.journal.read_bytes()
