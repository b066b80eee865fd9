"""A search on tasks of lm-evaluation-harness, through the command line."""

import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # lm_eval's own engine

from tests.e2e import real_project as rp
from tests.evaluation.test_lm_eval import (
    ANSWER,
    CHOICE,
    ROLLING,
    identity,
    per_bit,
    values,
    write_task,
)
from tests.evaluation.test_lm_eval import rows as documents

pytestmark = pytest.mark.slow

TASKS = {
    "choice": ("acc,none", identity),
    "answer": ("exact_match,first-letter", identity),
    "rolling": ("bits_per_byte,none", per_bit),
}


def test_the_exported_model_has_the_scores_that_the_harness_gives_it(tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for task in (CHOICE, ANSWER, ROLLING):
        write_task(tmp_path / "tasks", task, documents(24))
    rp.save_family(tmp_path / "models", rp.llama())
    tasks = [
        {
            "name": name,
            "evaluator": {
                "name": "lm_eval",
                "task": name,
                "include_path": "./tasks",
                "metric": metric,
                "rows": [0, 16],
            },
            "held_out": {"rows": [16, 24]},
        }
        for name, (metric, _) in TASKS.items()
    ]
    done = rp.search_and_export(tmp_path, rp.config(tmp_path / "models", tasks))

    monkeypatch.chdir(tmp_path / "tasks")  # the harness finds data files from there
    # Its cache of equal windows mixes them up when one batch holds two.
    model = HFLM(
        pretrained=str(done.folder), device="cpu", batch_size=4, dtype="float32", logits_cache=False
    )
    log = lm_eval.simple_evaluate(
        model,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=tmp_path / "tasks", include_defaults=False),
        bootstrap_iters=0,
    )["samples"]
    for name, (metric, score) in TASKS.items():
        known = [score(value) for value in values(log[name], metric)]
        assert done.row["search"][name] == pytest.approx(np.mean(known[:16]), rel=1e-5)
        assert done.row["held_out"][name] == pytest.approx(np.mean(known[16:]), rel=1e-5)

    tasks[0]["held_out"] = {"rows": [10, 20]}
    file = tmp_path / "overlap.yaml"
    file.write_text(yaml.safe_dump(rp.config(tmp_path / "models", tasks)))
    refused = rp.cli("check", file, expect=2)
    assert "shares 6 documents of" in refused.err

    task_file = tmp_path / "tasks" / "choice.yaml"
    task_file.write_text(task_file.read_text().replace("{{text}}", "Q: {{text}}"))
    changed = rp.cli("resume", done.run, "--evaluations", 13, expect=3)
    assert "choice.yaml" in changed.err
