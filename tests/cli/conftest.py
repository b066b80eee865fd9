"""A finished run, and a fresh workplace around a copy of it."""

import pytest

from tests.cli.command import build_place, command


@pytest.fixture(scope="session")
def finished_run(tiny_models, tmp_path_factory):
    """A run of six evaluations; copy it before changing it."""
    from evomerge.config.schema import load_config
    from evomerge.config.session import Session, open_or_create
    from evomerge.storage.run_store import RunFolder

    home = tmp_path_factory.mktemp("finished")
    tiny_models.write(home / "c.yaml", budget={"evaluations": 6})
    folder = RunFolder(home / "tiny")
    config, _ = open_or_create(load_config(home / "c.yaml"), home, folder)
    with Session(folder, config=config) as session:
        session.run()
    return folder.path


@pytest.fixture
def place(tiny_models, finished_run, tmp_path, monkeypatch):
    """The current folder: models, a config that works, and a finished run next to it."""
    monkeypatch.chdir(tmp_path)
    return build_place(tmp_path, tiny_models, finished_run)


@pytest.fixture
def evomerge(capsys):
    """Run the command line in this process."""
    return lambda *arguments: command(capsys, *arguments)
