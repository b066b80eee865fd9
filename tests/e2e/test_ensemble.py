"""The best members of a run vote: what ensemble.json says is what the written models answer."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import ViTForImageClassification

from .tiny_run import evomerge


def save_images(path, n, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(n, 1, 4, 4)).astype(np.float32)
    np.savez(path, pixel_values=pixels, labels=rng.integers(0, 3, n))
    return {"name": "classification", "examples": str(path)}


def write_config(models, folder, **evaluator):
    task = {"name": "images", "evaluator": save_images(folder / "s.npz", 40, 0) | evaluator}
    task["held_out"] = {"examples": save_images(folder / "t.npz", 60, 1)["examples"]}
    return models.write(folder / "c.yaml", tasks=[task], budget={"evaluations": 14})


def ensemble(run, out, *more):
    return evomerge("export", run, "--ensemble", 3, "--out", out, "--json", *more)


@pytest.mark.slow
def test_the_vote_is_that_of_the_written_models(tiny_models, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    done = evomerge("search", write_config(tiny_models, tmp_path), "--run", run)
    assert done.returncode == 0, done.stderr
    done = ensemble(run, out)
    assert done.returncode == 0, done.stderr
    body = json.loads((out / "ensemble.json").read_text())
    assert body == json.loads(done.stdout)
    assert body["ranked_by"] == "search"
    found = [member["search"]["images"] for member in body["members"]]
    assert found == sorted(found, reverse=True)

    with np.load(tmp_path / "t.npz") as data:
        pixels, labels = torch.from_numpy(data["pixel_values"]), data["labels"]
    ballots = []
    for member in body["members"]:
        model = ViTForImageClassification.from_pretrained(out / member["folder"]).eval()
        with torch.no_grad():
            ballots.append(model(pixel_values=pixels).logits.argmax(dim=1).tolist())
        alone = float((np.array(ballots[-1]) == labels).mean())
        assert member["held_out"]["images"] == pytest.approx(alone, abs=1e-6)
    votes = [Counter(row).most_common(1)[0][0] for row in zip(*ballots, strict=True)]
    assert body["held_out"]["images"] == pytest.approx(float((votes == labels).mean()), abs=1e-6)
    assert body["n_held_out"] == {"images": 60}

    again = ensemble(run, out)
    assert (again.returncode, "not an empty folder" in again.stderr) == (2, True)
    picked = ensemble(run, tmp_path / "o", "--pick", "best:images")
    assert "leave out --pick" in picked.stderr
    few = evomerge("export", run, "--ensemble", 1, "--out", tmp_path / "o")
    assert "one model has no vote" in few.stderr


@pytest.mark.slow
def test_scores_that_are_no_answers_are_refused(tiny_models, tmp_path):
    run = tmp_path / "run"
    config = write_config(tiny_models, tmp_path, metric="probability")
    assert evomerge("search", config, "--run", run).returncode == 0
    done = ensemble(run, tmp_path / "out")
    assert done.returncode != 0
    assert "it is scored by probability" in done.stderr
    assert not (tmp_path / "out").exists()
