"""A local MLflow store, queried with MLflow's client."""

import shutil

import pytest

from evomerge.config.results import RunResults
from evomerge.errors import RunError
from evomerge.trackers.mlflow_tracker import MlflowTracker
from tests.report.synthetic import Plan, write_run

pytest.importorskip("mlflow", reason="mlflow is not installed")
pytestmark = [
    pytest.mark.slow,  # MLflow takes seconds to make a database
    # Of MLflow with a SQLAlchemy that is newer than it.
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty MLflow database."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, tmp_path / "m.db")
    return f"sqlite:///{tmp_path}/m.db"


def only_run(uri, experiment="evomerge"):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(found) == 1
    return client, found[0]


def test_metrics_params_and_artifacts_of_a_run(run, send, store):
    assert send(run, MlflowTracker()) == 30
    client, made = only_run(f"sqlite:///{run.path}/trackers/mlflow.db")
    results = RunResults(run)
    history = client.get_metric_history(made.info.run_id, "objective/maths")
    values = {n: e["objectives"][0] for n, e in enumerate(results.told, 1) if "objectives" in e}
    assert {metric.step: metric.value for metric in history} == values
    assert made.data.metrics["search/hypervolume"] == pytest.approx(results.hypervolume())
    assert made.data.metrics["search/failed"] == results.n_failed
    assert made.data.params["seed"] == "3"
    assert made.info.run_name == "digits"
    artifacts = run.path / "trackers" / "mlflow-artifacts"
    (front,) = artifacts.rglob("front.md")
    assert len(front.read_text().splitlines()) == 2 + len(results.front())
    (config,) = artifacts.rglob("config.yaml")
    assert "algorithm:" in config.read_text()


def test_a_resume_goes_on_in_the_same_run(run, send, grow, store):
    tracker = lambda: MlflowTracker(store, experiment="merges")  # noqa: E731
    send(run, tracker())
    grow(run, range(30, 36))
    assert send(run, tracker()) == 6
    assert send(run, tracker()) == 0
    client, made = only_run(store, "merges")
    steps = [m.step for m in client.get_metric_history(made.info.run_id, "search/examples")]
    assert sorted(steps) == list(range(1, 37))


def test_runs_of_one_store_are_kept_apart(run, send, store, tmp_path):
    from mlflow.tracking import MlflowClient

    send(run, MlflowTracker(store))
    assert send(write_run(tmp_path / "other", Plan(n=5)), MlflowTracker(store)) == 5
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("evomerge").experiment_id
    assert {r.info.run_name for r in client.search_runs([experiment])} == {"digits", "other"}


def test_names_that_mlflow_does_not_take_are_mended(send, store, tmp_path):
    odd = write_run(tmp_path / "odd", Plan(n=6, names=("maths (hard)", "chat")))
    send(odd, MlflowTracker(store))
    _, made = only_run(store)
    assert "objective/maths _hard_" in made.data.metrics


def test_the_address_may_come_from_the_environment(run, send, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    send(run, MlflowTracker())
    only_run(store)
    assert not (run.path / "trackers").exists()


def test_a_crash_while_noting_how_far_it_got_does_not_make_it_another_run(
    run, send, grow, store, monkeypatch
):
    from mlflow.tracking import MlflowClient

    send(run, MlflowTracker(store))
    grow(run, range(30, 33))
    set_tag, notes = MlflowClient.set_tag, []

    def crash(*arguments):
        if notes:
            raise OSError("killed")
        notes.append(set_tag(*arguments))

    monkeypatch.setattr(MlflowClient, "set_tag", crash)
    monkeypatch.setattr(MlflowTracker, "finish", lambda self, ending: crash())
    with pytest.raises(RunError, match="killed"):
        send(run, MlflowTracker(store))
    monkeypatch.undo()
    assert send(run, MlflowTracker(store)) == 0
