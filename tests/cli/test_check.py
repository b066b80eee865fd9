"""What `check` says about a config: facts, then findings with what to do."""

import json
import shutil


def test_findings_are_sorted_by_how_bad_they_are_and_say_what_to_do(place, evomerge):
    place.write()
    done = evomerge("check", "c.yaml")
    said = done.out.splitlines()
    marks = [line[0] for line in said if not line.startswith(" ")]
    assert marks == sorted(marks, key="✓!✗".index)
    assert done.code == 0
    assert "!" in marks
    for number, line in enumerate(said):
        if line.startswith("!"):
            assert said[number + 1].startswith("  → ")
    memory = next(line for line in said if line.startswith("✓ memory: "))
    assert (
        " per worker besides activations and pages of files, 1 worker; this machine has " in memory
    )
    assert "✓ examples: up 12 search; down 12 search" in said
    assert "! licence: none can be stated, for" in done.out
    assert "✓ dry run: up: base scores " in done.out


def test_more_workers_are_counted_and_a_short_look_ahead_is_pointed_out(place, evomerge):
    place.put("runtime", {"executor": "ray", "workers": 8})
    place.put("search.look_ahead", 3)
    place.write()
    said = evomerge("check", "c.yaml").out
    assert "pages of files, 8 workers" in said
    assert "! workers: search.look_ahead is 3: at most 3 of 8 workers will be busy" in said


def test_a_copy_of_the_base_fails_the_check_and_is_in_the_json(place, evomerge):
    shutil.copytree(place.model("base"), place.model("y"), dirs_exist_ok=True)
    place.write()
    done = evomerge("check", "c.yaml", "--json", "--no-dry-run")
    facts = json.loads(done.out)
    (found,) = [item for item in facts["findings"] if item["mark"] == "✗"]
    assert done.code == 3
    assert "'y' holds the same weights as the base 'base'" in found["text"]
    assert found["remedy"]
    assert facts["lineage"]["experts"]["y"]["cosine"] > 0.999
    assert facts["licence"]["merged"] is None
    assert not [item for item in facts["findings"] if item["topic"] == "dry run"]


def test_an_evaluator_that_fails_fails_the_check(place, evomerge):
    place.put("tasks.0.evaluator.function", "tiny_scorer:fails")
    place.put("tasks.0.evaluator.arguments", {"n": 12})
    place.write()
    done = evomerge("check", "c.yaml")
    assert done.code == 3
    assert "✗ dry run: up: " in done.out
    assert "this evaluator always fails" in done.out
