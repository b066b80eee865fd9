"""M2N2 from scratch on a real model: seeded noise in recipes, resumed, exported, merged again."""

import json

import pytest
from safetensors.torch import load_file

from .tiny_run import evomerge, journal

SCRATCH = {
    "base_model": None,
    "merge": {"name": "linear", "normalize": False},
    "algorithm": {"name": "m2n2", "population_size": 4, "mutation": 0.01, "max_noise": 5},
    "search": {"look_ahead": 2, "founders": "parents"},
}


@pytest.mark.slow
def test_noise_is_replayed_exported_and_merged_again(tiny_models, tmp_path):
    config = tiny_models.write(tmp_path / "c.yaml", **SCRATCH)
    tiny_models.write(config, **SCRATCH, budget={"evaluations": 9})
    done = evomerge("search", config, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = evomerge("resume", tmp_path / "run", "--evaluations", "20")
    assert done.returncode == 0, done.stderr

    run = [e for e in journal(tmp_path / "run") if e["kind"] == "asked"]
    noise = [[s for s in e["recipe"]["sources"] if s.startswith("noise:")] for e in run]
    assert max(map(len, noise)) == 5
    assert len({name for names in noise for name in names}) == sum(bool(n) for n in noise)

    last = str(run[-1]["id"])
    out = tmp_path / "out"
    done = evomerge(
        "export", tmp_path / "run", "--pick", f"candidate:{last}", "--out", out, "--verify", "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rescored_examples"] == 24
    assert not (out / "mergekit.yaml").exists()
    assert "noise" in (out / "README.md").read_text()

    done = evomerge("merge", out / "recipe.json", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    first, again = (load_file(f / "model.safetensors") for f in (out, tmp_path / "again"))
    assert all(first[name].equal(again[name]) for name in first)
