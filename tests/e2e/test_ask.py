"""`evomerge ask` on a finished run of tiny real models."""

import json
import shutil

import pytest

from .tiny_run import evomerge

ALGORITHM = {"name": "amortized_pareto", "samples": 10, "batch_size": 4}


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    """One finished run that read-only tests share."""
    folder = tmp_path_factory.mktemp("asked")
    merge = {"name": "task_arithmetic", "groups": "global"}
    tiny_models.write(
        folder / "c.yaml", algorithm=ALGORITHM, merge=merge, budget={"evaluations": 24}
    )
    done = evomerge("search", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def ask(folder, *arguments):
    done = evomerge("ask", "tiny", "--json", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_answer_follows_the_weights_and_repeats(finished):
    first = ask(finished, "--weights", "up=0.9,down=0.1")
    assert ask(finished, "--weights", "up=9,down=1") == first
    other = ask(finished, "--weights", "up=0.1,down=0.9")
    assert first["predicted"]["up"] > other["predicted"]["up"]
    assert first["predicted"]["down"] < other["predicted"]["down"]
    assert first["recipe"] != other["recipe"]
    assert 20 <= first["fitted_to"] <= 24  # founders of other methods have no place in the space
    assert first["newer"] == 0
    assert first["error"]["up"]["n"] > 0
    front = json.loads(evomerge("front", "tiny", "--json", cwd=finished).stdout)
    best = max(member["objectives"]["up"] for member in front)
    assert first["predicted"]["up"] > best - 0.1
    assert 0.0 <= first["nearest"]["distance"] < 1.0


def test_people_get_a_table(finished):
    done = evomerge("ask", "populations/tiny", "--weights", "up=1", cwd=finished)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("recipe ")
    assert lines[1].split() == ["objective", "expected", "±", "nearest", "error"]
    assert lines[-1].startswith("weights: x ")


@pytest.mark.slow
def test_the_answer_can_be_exported_and_is_marked_unscored(finished, tmp_path):
    out = tmp_path / "model"
    body = ask(finished, "--weights", "up=1,down=1", "--out", str(out))
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["recipe"]["params"] == body["coefficients"]
    assert recipe["weights_digest"] == body["weights_digest"]
    assert "itself was not scored" in (out / "README.md").read_text()
    again = evomerge("merge", out / "recipe.json", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["weights_digest"] == body["weights_digest"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [("sideways=1", "'sideways' is not an objective"), ("up", "expected name=number")],
)
def test_wrong_weights_are_explained(finished, weights, message):
    done = evomerge("ask", "tiny", "--weights", weights, cwd=finished)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_lost_or_damaged_surrogate_comes_back_on_resume(finished, tmp_path):
    shutil.copytree(finished / "populations", tmp_path / "populations")
    file = tmp_path / "populations" / "tiny" / "surrogate.json"
    before = file.read_bytes()
    for break_it in (lambda: file.write_bytes(before[:-40]), file.unlink):
        break_it()
        done = evomerge("ask", "tiny", "--weights", "up=1", cwd=tmp_path)
        assert done.returncode == 3
        assert "evomerge resume" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert evomerge("resume", "tiny", cwd=tmp_path).returncode == 0
        assert file.read_bytes() == before


@pytest.mark.slow
def test_results_newer_than_the_surrogate_are_counted(finished, tmp_path):
    shutil.copytree(finished / "populations", tmp_path / "populations")
    file = tmp_path / "populations" / "tiny" / "surrogate.json"
    old = file.read_bytes()
    done = evomerge("resume", "tiny", "--evaluations", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    longer = ask(tmp_path, "--weights", "up=1")
    assert (longer["fitted_to"], longer["newer"]) == (len(json.loads(old)["points"]) + 6, 0)
    file.write_bytes(old)  # as if the search still ran
    assert ask(tmp_path, "--weights", "up=1")["newer"] == 6


@pytest.mark.slow
def test_runs_of_other_algorithms_have_nothing_to_ask(tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", budget={"evaluations": 8})
    assert evomerge("search", "c.yaml", cwd=tmp_path).returncode == 0
    done = evomerge("ask", "tiny", "--weights", "up=1", cwd=tmp_path)
    assert done.returncode == 3
    assert "algorithm 'random' fits none; search with amortized_pareto" in done.stderr


def test_too_many_layers_for_the_budget_are_refused_before_the_run(tiny_models, tmp_path):
    merge = {"name": "task_arithmetic", "groups": "module"}
    tiny_models.write(tmp_path / "c.yaml", algorithm={"name": "amortized_pareto"}, merge=merge)
    done = evomerge("check", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "coefficients per objective" in done.stderr
    assert not (tmp_path / "populations").exists()


def test_points_that_a_race_left_behind_are_counted(tiny_models, tmp_path):
    tiny_models.write(
        tmp_path / "c.yaml",
        algorithm={"name": "amortized_pareto", "generations": 10},
        racing={"name": "halving"},
        merge={"name": "task_arithmetic"},
        budget={"evaluations": 16},
    )
    assert evomerge("search", "c.yaml", cwd=tmp_path).returncode == 0
    done = evomerge("ask", "tiny", "--weights", "up=1,down=1", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert 0 < facts["estimated"] < facts["fitted_to"]
    said = evomerge("ask", "tiny", "--weights", "up=1,down=1", cwd=tmp_path).stdout
    assert f"{facts['estimated']} of the {facts['fitted_to']} were left behind by a race" in said
