"""A run that reports are made of."""

import pytest

from evomerge.config.results import RunResults
from evomerge.report.data import report_data
from tests.report.synthetic import Plan, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run", Plan(n=80))


@pytest.fixture(scope="session")
def data(run):
    return report_data(RunResults(run))
