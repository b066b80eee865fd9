"""Constraints and the views of a front through the command line, on tiny real models."""

import json

import pytest

from .tiny_run import evomerge, journal


@pytest.fixture(scope="module")
def guarded(tiny_models, tmp_path_factory):
    """A run that maximises `up` and keeps `down`."""
    folder = tmp_path_factory.mktemp("guarded")
    tiny_models.write(
        folder / "c.yaml",
        objectives=[{"name": "up", "tasks": {"up": 1.0}}],
        constraints=[{"task": "down", "at_least": "base - 0.01"}],
        algorithm={"name": "tpe"},
        budget={"evaluations": 24},
    )
    done = evomerge("search", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def measured(folder, name="tiny"):
    told = [e for e in journal(folder / "populations" / name) if e["kind"] == "told"]
    return {e["id"]: (e["objectives"][0], e["measured"][0]) for e in told}


def test_the_front_keeps_the_constraint(guarded):
    found = measured(guarded)
    limit = found[0][1] - 0.01  # candidate 0 is the base
    best = max(up for up, down in found.values() if down >= limit)
    assert best < max(up for up, _ in found.values()), "the constraint must cost something"
    done = evomerge("front", "tiny", "--json", cwd=guarded)
    (member,) = json.loads(done.stdout)
    assert member["objectives"]["up"] == best
    assert member["feasible"] is True
    assert member["constraints"]["down >= base - 0.01"] >= limit
    saved = json.loads((guarded / "populations/tiny/front.json").read_text())
    assert [(m["candidate"], m["feasible"]) for m in saved] == [(member["candidate"], True)]
    text = evomerge("front", "tiny", cwd=guarded).stderr
    assert f"constraint: down >= base - 0.01 = {limit:.4f}" in text


def test_status_counts_feasible_candidates_and_shows_the_best_of_them(guarded):
    found = measured(guarded)
    limit = found[0][1] - 0.01
    status = json.loads(evomerge("status", "tiny", "--json", cwd=guarded).stdout)
    assert status["feasible"] == sum(down >= limit for _, down in found.values())
    assert status["best"]["up"]["value"] == max(u for u, down in found.values() if down >= limit)
    assert status["constraints"] == [f"down >= base - 0.01 = {limit:.4f}"]


def test_exports_say_whether_the_constraint_is_kept(guarded, tmp_path):
    done = evomerge("export", "tiny", "--out", tmp_path / "best", "--json", cwd=guarded)
    (row,) = json.loads(done.stdout)
    assert row["feasible"] is True
    assert "Constraint down >= base - 0.01" in (tmp_path / "best/README.md").read_text()
    found = measured(guarded)
    broken = max(found, key=lambda i: found[i][0])
    done = evomerge(
        "export", "tiny", "--pick", f"candidate:{broken}", "--out", tmp_path / "b", cwd=guarded
    )
    assert done.returncode == 0, done.stderr
    assert "does not keep all constraints" in done.stderr
    assert "NOT met" in (tmp_path / "b/README.md").read_text()


def test_resume_finds_the_same_front(guarded):
    before = evomerge("front", "tiny", "--json", cwd=guarded).stdout
    done = evomerge("resume", "tiny", cwd=guarded)
    assert done.returncode == 0, done.stderr
    assert evomerge("front", "tiny", "--json", cwd=guarded).stdout == before


@pytest.mark.slow
def test_a_front_without_a_feasible_candidate_says_so(tiny_models, tmp_path):
    tiny_models.write(
        tmp_path / "c.yaml",
        constraints=[{"task": "down", "at_least": 2.0}],
        budget={"evaluations": 8},
    )
    done = evomerge("search", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no candidate keeps all constraints" in done.stdout
    found = measured(tmp_path)
    nearest = max(down for _, down in found.values())
    done = evomerge("front", "tiny", cwd=tmp_path)
    assert "no candidate keeps all constraints; these come nearest" in done.stderr
    members = json.loads(evomerge("front", "tiny", "--json", cwd=tmp_path).stdout)
    assert {m["feasible"] for m in members} == {False}
    assert {m["constraints"]["down >= 2"] for m in members} == {nearest}


def test_check_lists_the_constraints_and_refuses_wrong_ones(tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", constraints=[{"task": "down", "at_least": "0.9 * base"}])
    assert "constraint: down >= 0.9 * base" in evomerge("check", "c.yaml", cwd=tmp_path).stdout
    tiny_models.write(tmp_path / "c.yaml", constraints=[{"task": "down", "at_least": "0.9 * bass"}])
    done = evomerge("check", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'base'" in done.stderr


@pytest.mark.slow
def test_views_of_the_front(tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", budget={"evaluations": 30})
    assert evomerge("search", "c.yaml", cwd=tmp_path).returncode == 0

    def ids(*options):
        done = evomerge("front", "tiny", "--json", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {member["candidate"] for member in json.loads(done.stdout)}

    front, thin = ids(), ids("--thin")
    assert thin <= front
    assert 1 <= len(thin) < len(front)
    sure, surer = ids("--confident", "0.6"), ids("--confident", "0.9999")
    assert sure <= surer
    assert len(surer) > len(front)
    for options in (["--confident", "0.4"], ["--confident", "0.9", "--thin"]):
        done = evomerge("front", "tiny", *options, cwd=tmp_path)
        assert done.returncode == 2
        assert "--confident" in done.stderr
