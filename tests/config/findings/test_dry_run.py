"""Two examples through every evaluator before a search begins."""

from __future__ import annotations

import json

from evomerge.config.findings import dry_run
from evomerge.config.findings.data import example_findings
from evomerge.config.findings.dry_run import dry_run_findings
from evomerge.config.findings.resources import disk_finding, memory_finding
from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import preflight
from evomerge.config.tasks import build_tasks

SPLITS = {"search": 0.5, "validation": 0.25, "test": 0.25}


def prepared(tiny_models, folder, **changes):
    return preflight(load_config(tiny_models.write(folder / "c.yaml", **changes)), folder)


def broken(tiny_models):
    task = tiny_models.task("up", 0.1)
    task["evaluator"]["function"] = "tiny_scorer:fails"
    task["evaluator"]["arguments"] = {"n": 12}
    return task


def test_working_evaluators_show_two_scores(tiny_models, tmp_path):
    found = dry_run_findings(prepared(tiny_models, tmp_path), 1000)
    assert [item.mark for item in found] == ["✓", "✓"]
    assert "up: base scores " in found[0].text
    assert "on 2 examples" in found[0].text


def test_a_failing_evaluator_is_found_before_the_search(tiny_models, tmp_path):
    tasks = [broken(tiny_models), tiny_models.task("down", -0.1)]
    found = dry_run_findings(prepared(tiny_models, tmp_path, tasks=tasks), 1000)
    assert [item.mark for item in found] == ["✗", "✓"]
    assert "this evaluator always fails" in found[0].text


def test_large_models_are_left_out_unless_asked_for(tiny_models, tmp_path):
    ready, large = prepared(tiny_models, tmp_path), dry_run.MAX_BYTES["gpu"] + 1
    (found,) = dry_run_findings(ready, large)
    assert (found.mark, "--dry-run" in found.remedy) == ("!", True)
    assert [item.mark for item in dry_run_findings(ready, large, forced=True)] == ["✓", "✓"]
    assert dry_run_findings(ready, 1000, forced=False) == []


def test_every_part_of_the_examples_is_counted(tiny_models, tmp_path):
    ready = prepared(tiny_models, tmp_path)
    texts = [(item.mark, item.text) for item in example_findings(ready.tasks)]
    assert texts[0] == ("✓", "up 12 search; down 12 search")
    assert [mark for mark, _ in texts] == ["✓", "!", "!"]


def test_splits_are_counted_and_compared_by_content(tmp_path):
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluator = {"name": "classification", "examples": str(tmp_path / "rows.jsonl")}
    config = RunConfig.model_validate(
        {
            "name": "a",
            "models": ["x", "y"],
            "merge": "linear",
            "algorithm": "random",
            "tasks": [{"name": "t", "evaluator": evaluator, "splits": SPLITS}],
            "budget": {"evaluations": 1},
        }
    )
    found = example_findings(build_tasks(config))
    sizes = [int(part.split()[0]) for part in found[0].text.removeprefix("t ").split(", ")]
    assert sum(sizes) == 40
    assert [part.split()[-1] for part in found[0].text.split(", ")] == list(SPLITS)
    assert found[1].text == "no example is in two parts, compared by content"


def test_memory_and_disk_are_held_against_what_is_here(tiny_models, tmp_path):
    config = prepared(tiny_models, tmp_path).config
    assert memory_finding(config, 1000).mark == disk_finding(1000).mark == "✓"
    for found in (memory_finding(config, 1 << 60), disk_finding(1 << 60)):
        assert (found.mark, bool(found.remedy)) == ("!", True)
