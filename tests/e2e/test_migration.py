"""A mergekit-evolve config converts and runs."""

import json

import pytest
import yaml

pytest.importorskip("lm_eval")

from tests.e2e import real_project as rp
from tests.evaluation.test_lm_eval import CHOICE, write_task
from tests.evaluation.test_lm_eval import rows as documents

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["dare_ties", "linear"])
def test_a_mergekit_evolve_config_converts_and_runs(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "tasks", CHOICE, documents(20))
    rp.save_family(tmp_path / "models", rp.llama())
    old = {
        "genome": {
            "models": ["models/x", "models/y"],
            "merge_method": method,
            "base_model": "models/base",
            "layer_granularity": 1,
            "normalize": True,
        },
        "tasks": [{"name": "choice", "weight": 1.0, "metric": "acc,none"}],
        "limit": 16,
        "num_fewshot": 0,
        "apply_chat_template": False,
    }
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(old))
    rp.cli(
        "init", "--from-mergekit-evolve", "evolve.yml", "--out", "new/search.yaml",
        "--include-path", "tasks", "--evaluations", 12,
    )  # fmt: skip
    facts = rp.cli("check", "new/search.yaml", "--json").json
    n_blocks = json.loads((tmp_path / "models/x/config.json").read_text())["num_hidden_layers"]
    assert (facts["groups"], facts["tasks"]) == (n_blocks + 2, {"choice": 16})
    assert rp.cli("plan", "new/search.yaml", "--json").json["noise"]["choice"]["n"] == 16
    rp.cli("search", "new/search.yaml", "--run", "run")
    assert rp.cli("status", "run", "--json").json["state"] == "done"
    assert rp.cli("replay", "run", "--candidate", 11, "--json").json["equal"]
    rp.cli("export", "run", "--pick", "max(score)", "--out", "merged", "--verify")
