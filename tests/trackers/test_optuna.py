"""A run as an Optuna study, read back with Optuna and served by its dashboard."""

import http.cookiejar
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from evomerge.config.results import RunResults
from evomerge.errors import ConfigError, RunError
from evomerge.trackers.optuna_tracker import OptunaTracker
from tests.report.synthetic import Plan, write_run


def load(path, name="digits") -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage)


def test_a_study_holds_everything_of_the_run(run, send):
    assert send(run, OptunaTracker()) == 30
    study = load(run.path / "trackers" / "optuna.journal")
    results = RunResults(run)
    assert study.metric_names == ["maths", "chat"]
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    told = results.told
    assert [trial.user_attrs["candidate"] for trial in study.trials] == [e["id"] for e in told]
    for trial, event in zip(study.trials, told, strict=True):
        asked = results.asked[event["id"]]
        assert trial.user_attrs["recipe"] == asked["digest"]
        assert trial.user_attrs["parents"] == asked["parents"]
        assert trial.user_attrs["examples"] == 80
        assert trial.datetime_complete >= trial.datetime_start
        if "error" in event:
            assert trial.state is TrialState.FAIL
            assert trial.values is None
            assert trial.user_attrs["error"] == event["error"]
            continue
        assert trial.state is TrialState.COMPLETE
        assert trial.values == event["objectives"]
        weights = np.array(asked["recipe"]["params"]["weights"])
        groups = [f"layer.{i}" for i in range(4)]
        for column, source in enumerate(("maths-7b", "chat-7b")):
            found = [trial.params[f"weights/{source}/{group}"] for group in groups]
            assert found == weights[:, column].tolist()
            scale = trial.distributions[f"weights/{source}/layer.0"]
            assert scale.low <= min(found) <= max(found) <= scale.high
    front = {trial.user_attrs["candidate"] for trial in study.best_trials}
    assert front == set(results.front().candidate_ids.tolist())
    seconds = study.trials[3].datetime_complete - study.trials[3].datetime_start
    assert seconds.total_seconds() == 5.0


@pytest.mark.parametrize("storage", ["x.journal", "sqlite:///x.db"])
def test_a_second_time_only_what_is_new_is_added(storage, run, send, grow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = lambda: OptunaTracker(storage, study="mine")  # noqa: E731
    assert send(run, tracker()) == 30
    assert send(run, tracker()) == 0
    grow(run, range(30, 34))
    assert send(run, tracker()) == 4
    study = (
        load(storage, "mine") if "://" not in storage else optuna.load_study(
            study_name="mine", storage=storage
        )
    )  # fmt: skip
    assert [trial.user_attrs["candidate"] for trial in study.trials] == list(range(34))


def test_a_study_of_something_else_is_refused_and_left_alone(run, send, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = write_run(tmp_path / "other", Plan(n=5))
    send(other, OptunaTracker("x.journal", study="s"))
    with pytest.raises(
        RunError, match=r"study .s. in x\.journal: holds the results of another run"
    ):
        send(run, OptunaTracker("x.journal", study="s"))
    assert len(load("x.journal", "s").trials) == 5
    again = write_run(tmp_path / "again" / "other", Plan(n=6))  # other scores, all else alike
    with pytest.raises(RunError, match="another run"):
        send(again, OptunaTracker("x.journal", study="s"))
    made = optuna.create_study(study_name="by hand", storage="sqlite:///hand.db")
    made.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(RunError, match="another run"):
        send(run, OptunaTracker("sqlite:///hand.db", study="by hand"))
    assert len(made.trials) == 1


def test_passwords_do_not_get_into_configs_or_messages(run, send, monkeypatch):
    url = "postgresql+nothing://me:sesame-123@127.0.0.1:1/x"
    with pytest.raises(ConfigError, match=r"write storage: \$NAME") as error:
        OptunaTracker(url).check()
    assert "sesame" not in str(error.value)
    monkeypatch.setenv("STUDIES", url)
    with pytest.raises(RunError, match="cannot be opened") as refused:
        send(run, OptunaTracker("$STUDIES"))
    assert "sesame" not in str(refused.value)
    monkeypatch.delenv("STUDIES")
    with pytest.raises(ConfigError, match="'STUDIES' is not set"):
        OptunaTracker("$STUDIES").check()


def test_a_link_in_a_run_folder_is_not_written_through(run, send, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    (run.path / "trackers").mkdir()
    (run.path / "trackers" / "optuna.journal").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="is a link"):
        send(run, OptunaTracker())
    assert (tmp_path / "precious").read_text() == "keep me"


@pytest.mark.slow
def test_the_dashboard_serves_the_study(run, send, tmp_path):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    file = tmp_path / "digits.journal"
    send(run, OptunaTracker(str(file)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "optuna_dashboard._cli", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", str(file)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, cwd=tmp_path,
    )  # fmt: skip
    try:
        summary = _get(f"http://127.0.0.1:{port}/api/studies", process)["study_summaries"][0]
        assert summary["study_name"] == "digits"
        study = _get(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0", process)
    finally:
        process.kill()
        process.communicate()
    assert study["directions"] == ["maximize", "maximize"]
    assert study["objective_names"] == ["maths", "chat"]
    assert len(study["trials"]) == 30
    assert {trial["state"] for trial in study["trials"]} == {"Complete", "Fail"}
    assert {item["name"] for item in study["trials"][0]["params"]} >= {"weights/chat-7b/layer.3"}


def _get(address: str, process: subprocess.Popen) -> dict:
    """Return what a server that is still starting answers."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )  # fmt: skip
    for _ in range(300):
        try:
            with opener.open(address, timeout=30) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")
