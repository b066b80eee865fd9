"""What `check` says about a config that is fine."""

from evomerge.cli.check import megabytes


def test_warnings_come_last_and_sizes_make_sense(place, evomerge):
    place.write()
    said = evomerge("check", "c.yaml").out.splitlines()
    marks = [line[0] for line in said]
    assert marks == sorted(marks, key="!".__eq__)
    assert "!" in marks
    assert "✓ under 1 MB per worker, 1 worker" in said


def test_more_workers_are_counted_and_a_short_look_ahead_is_pointed_out(place, evomerge):
    place.put("runtime", {"executor": "ray", "workers": 8})
    place.put("search.look_ahead", 3)
    place.write()
    said = evomerge("check", "c.yaml").out
    assert "per worker, 8 workers" in said
    assert "! search.look_ahead is 3: at most 3 of 8 workers will be busy" in said


def test_megabytes_of_large_models_are_round():
    assert megabytes(15 * 2**30) == "about 15,360 MB"
    assert megabytes(2**20 - 1) == "under 1 MB"
