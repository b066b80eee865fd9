"""Runs that released versions wrote are read, replayed, and continued or refused with a reason."""

import json
import platform
import shutil
from importlib import metadata

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import evomerge
from evomerge.api import Run
from evomerge.config.build import build_algorithm, build_objectives, build_search_space
from evomerge.config.models import open_models
from evomerge.config.replay_run import replay_candidate
from evomerge.config.run_steps import RunSteps
from evomerge.config.session import Session, open_or_create, with_budget
from evomerge.config.tasks import build_tasks
from evomerge.config.workers import load_derived, read_run_config, read_sources
from evomerge.errors import ReplayError
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.storage.run_store import RunFolder, RunStore, stored_evaluations
from tests.fixtures.old_runs import RUNS, VERSION, copy_run, found, lay_out

OLD = [
    pytest.param(folder.parent.name, folder.name, id=f"{folder.parent.name}-{folder.name}")
    for folder in sorted(RUNS.glob("*/*"))
    if folder.name != "models"
]
# Algorithms that other packages' versions change.
ADAPTERS = {"front": "optuna"}


@pytest.fixture
def old(tmp_path):
    """Copies an old run."""

    def copy(version, name):
        lay_out(version)
        return copy_run(version, name, tmp_path / name)

    return copy


def then_and_now(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """Return what has another version than when the run began."""
    now = {"evomerge": evomerge.__version__, "python": platform.python_version()}
    then = folder.header()["versions"]
    now |= {name: metadata.version(name) for name in then if name not in now}
    return {name: (then[name], now[name]) for name in then if then[name] != now[name]}


def test_there_are_runs_of_this_version():
    """Write them with `python -m tests.fixtures.old_runs` when the version is raised."""
    assert (RUNS / VERSION).is_dir()


@pytest.mark.parametrize(("version", "name"), OLD)
def test_status_and_front_say_what_they_said(version, name, old):
    folder = old(version, name)
    then = json.loads((RUNS / version / name / "found.json").read_text())
    now = found(folder)
    assert {key: now["status"][key] for key in then["status"]} == then["status"]
    both = zip(now["front"], then["front"], strict=True)
    assert [{key: row[key] for key in before} for row, before in both] == then["front"]


@pytest.mark.parametrize(("version", "name"), OLD)
def test_every_result_reads_and_candidates_repeat(version, name, old):
    folder = old(version, name)
    told = [event for event in folder.read_events() if event["kind"] == "told"]
    steps = list(RunSteps(folder).poll())
    assert [step.candidate for step in steps] == [event["id"] for event in told]
    best = Run.open(folder.path).front()[0]["candidate"]
    if not {"torch", "numpy"} & set(then_and_now(folder)):
        assert replay_candidate(folder, best).is_equal


@pytest.mark.parametrize(("version", "name"), OLD)
def test_the_journal_replays(version, name, old):
    folder = old(version, name)
    if ADAPTERS.get(name) in then_and_now(folder):
        pytest.skip(f"{ADAPTERS[name]} has another version, whose proposals may differ")
    config = read_run_config(folder)
    models = open_models(config, known=read_sources(folder))
    tasks = build_tasks(config).sizes
    derived, span = load_derived(folder, models, None)
    space, _ = build_search_space(config, models, span, (), derived)
    store = RunStore(folder, header={}, tasks=tasks)
    loop = SearchLoop(
        algorithm=build_algorithm(config),
        space=space,
        objectives=build_objectives(config),
        log=store,
        plan=LoopPlan(config.seed, 16, config.search.look_ahead, tasks=tasks),
    )
    loop.replay(stored_evaluations(store.journal.events[1:], store.scores, tasks))
    store.close()
    assert sorted(loop.front.front().candidate_ids) == sorted(
        row["candidate"] for row in Run.open(folder.path).front()
    )


@pytest.mark.parametrize(("version", "name"), OLD)
def test_a_resume_goes_on_or_names_the_version_that_changed(version, name, old):
    folder = old(version, name)
    before = folder.journal.read_bytes()
    changed = then_and_now(folder)
    longer = with_budget(read_run_config(folder), 18)
    if not changed:
        with Session(folder, config=longer) as session:
            session.run()
        assert folder.journal.read_bytes().startswith(before)
        assert Run.open(folder.path).status()["done"] >= 18
        return
    with pytest.raises(ReplayError, match="--warm-start") as refused:
        Session(folder, config=longer)
    package, (then, now) = min(changed.items())
    assert f"versions.{package} was {then!r}, is {now!r}" in str(refused.value)
    assert folder.journal.read_bytes() == before


@pytest.mark.parametrize(("version", "name"), OLD)
def test_a_new_run_begins_from_the_old_evaluations(version, name, old, tmp_path):
    folder = old(version, name)
    config = with_budget(read_run_config(folder), 2)
    new = RunFolder(tmp_path / "new")
    resolved, _ = open_or_create(config, tmp_path, new, folder.path)
    with Session(new, config=resolved) as session:
        session.run()
    scored = [event for event in folder.read_events() if "objectives" in event]
    warm = new.header()["warm"]
    assert 0 < warm <= len(scored)
    told = [event for event in new.read_events() if event["kind"] == "told"]
    assert len(told) >= warm + 2
    assert np.isin(
        [event["scores"] for event in told[:warm]], [event["scores"] for event in scored]
    ).all()


def test_another_model_is_refused_by_name(old, tmp_path):
    folder = old(VERSION, "front")
    other = tmp_path / "x"
    shutil.copytree(RUNS / VERSION / "models" / "x", other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, other / "model.safetensors")
    text = folder.config.read_text().replace("/x\n", "/somewhere-else\n")
    folder.config.write_text(
        text.replace(f"/tmp/evomerge-runs-of-{VERSION}/somewhere-else", str(other))
    )
    with pytest.raises(Exception, match=r"'x'|x:") as refused:
        Session(folder)
    assert "Traceback" not in str(refused.value)
    assert refused.value.exit_code == 3
