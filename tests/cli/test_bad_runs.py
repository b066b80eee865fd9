"""Damaged, missing and changed runs, recipes and arguments: one line, and the run stays as it is."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.storage.journal import GENESIS, encode_line, read_journal
from evomerge.storage.lease import Lease
from tests.cli.command import Place, assert_one_line, read_parts, tree, write_parts
from tests.e2e.tiny_run import journal

Break = Callable[[Place], None]
LEASE = ("lock", "lease.json")  # a refused driver may have held the lease


@dataclass(frozen=True)
class Case:
    """A command, what is broken before it, and what its line must say."""

    id: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 3
    breaks: Break = lambda place: None


def rechained(edit: Callable[[list[dict]], None]) -> Break:
    """Edit the journal's events and give it a hash chain that is sound."""

    def breaks(place: Place) -> None:
        events, _, _ = read_journal(place.run / "journal.jsonl")
        edit(events)
        chain, lines = GENESIS, b""
        for event in events:
            chain, line = encode_line(chain, event)
            lines += line
        (place.run / "journal.jsonl").write_bytes(lines)

    return breaks


def journal_lines(edit: Callable[[list[bytes]], Any]) -> Break:
    def breaks(place: Place) -> None:
        path = place.run / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        edit(lines)
        path.write_bytes(b"".join(lines))

    return breaks


def altered(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b"founder", b"finder!")


def garbled(lines: list[bytes]) -> None:
    lines[3] = b"\x00" * len(lines[3].rstrip()) + b"\n"


def written(name: str, content: bytes | str) -> Break:
    data = content.encode() if isinstance(content, str) else content
    return lambda place: (place.run / name).write_bytes(data)


def removed(name: str) -> Break:
    return lambda place: (place.run / name).unlink()


def flipped(place: Place) -> None:
    data = bytearray((place.run / "scores.f32").read_bytes())
    data[100] ^= 1
    (place.run / "scores.f32").write_bytes(data)


def one_array(place: Place) -> None:
    np.save(place.run / "array.npy", np.zeros(3))
    (place.run / "array.npy").rename(place.run / "derived.npz")


def replaced(name: str, old: str, new: str) -> Break:
    def breaks(place: Place) -> None:
        path = place.run / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return breaks


def version(events: list[dict]) -> None:
    events[0]["versions"]["torch"] = "1.0.0"


def failed_candidate(events: list[dict]) -> None:
    told = next(e for e in events if e["kind"] == "told" and e["id"] == 2)
    told.clear()
    told.update(kind="told", id=2, error="it failed")


VERBS = (("status",), ("front",), ("resume",), ("export", "--out", "out"))
EVERY_VERB = [
    *(
        Case(f"{verb[0]}-misspelt-run", (verb[0], "tny", *verb[1:]), ("tny", "mean 'tiny'?"))
        for verb in VERBS
    ),
    *(
        Case(f"{verb[0]}-not-a-run", (verb[0], "models", *verb[1:]), ("models: not a run folder",))
        for verb in VERBS
    ),
    *(
        Case(
            f"{verb[0]}-altered-journal",
            (verb[0], "tiny", *verb[1:]),
            ("tiny/journal.jsonl: line 4 (byte", "hash chain", "backup"),
            breaks=journal_lines(altered),
        )
        for verb in VERBS
    ),
    *(
        Case(
            f"{verb[0]}-future-journal",
            (verb[0], "tiny", *verb[1:]),
            ("journal.jsonl: does not begin with a header of format 1 or 2",),
            breaks=rechained(lambda events: events[0].update(format=3)),
        )
        for verb in VERBS
    ),
]
RUN = [
    Case("status-of-a-file", ("status", "c.yaml"), ("c.yaml: there is no such run folder",)),
    Case(
        "garbled-journal",
        ("resume", "tiny"),
        ("journal.jsonl: line 4 (byte", "is not a journal record"),
        breaks=journal_lines(garbled),
    ),
    Case(
        "journal-lost-a-line",
        ("resume", "tiny"),
        ("journal.jsonl: line 3",),
        breaks=journal_lines(lambda lines: lines.pop(2)),
    ),
    Case(
        "journal-lost-its-header",
        ("status", "tiny"),
        ("journal.jsonl: line 1",),
        breaks=journal_lines(lambda lines: lines.pop(0)),
    ),
    Case(
        "journal-lines-swapped",
        ("front", "tiny"),
        ("journal.jsonl: line 3",),
        breaks=journal_lines(lambda lines: lines.insert(2, lines.pop(3))),
    ),
    Case(
        "never-started",
        ("status", "tiny"),
        ("tiny: was created but never started",),
        breaks=removed("journal.jsonl"),
    ),
    Case(
        "replay-differs",
        ("resume", "tiny"),
        ("ask #1 now yields recipe", "--warm-start"),
        breaks=rechained(lambda events: events[2].update(digest="0" * 16)),
    ),
    Case(
        "told-twice",
        ("resume", "tiny"),
        ("tells candidate 1 twice or unasked",),
        breaks=rechained(lambda events: events.append({"kind": "told", "id": 1, "error": "no"})),
    ),
    Case(
        "unknown-event",
        ("resume", "tiny"),
        ("event of unknown kind 'dreamt'",),
        breaks=rechained(lambda events: events.append({"kind": "dreamt"})),
    ),
    Case(
        "asked-without-a-recipe",
        ("resume", "tiny"),
        ("journal.jsonl: line 3: `recipe` must be a mapping",),
        breaks=rechained(lambda events: events[2].pop("recipe")),
    ),
    Case(
        "scores-cut",
        ("resume", "tiny"),
        ("the scores of 6 results are missing", "Restore scores.f32 from a backup"),
        breaks=lambda place: written("scores.f32", b"\0" * 90)(place),
    ),
    Case(
        "scores-altered",
        ("resume", "tiny"),
        ("scores.f32: row 1 is missing or was altered", "evomerge repair"),
        breaks=flipped,
    ),
    Case("scores-missing", ("resume", "tiny"), ("scores.f32",), breaks=removed("scores.f32")),
    Case(
        "scores-missing-at-verification",
        ("export", "tiny", "--verify", "--pick", "candidate:1", "--out", "out/x"),
        ("scores.f32",),
        breaks=removed("scores.f32"),
    ),
    Case("derived-missing", ("resume", "tiny"), ("derived.npz",), breaks=removed("derived.npz")),
    Case(
        "derived-missing-at-export",
        ("export", "tiny", "--out", "out"),
        ("tiny/derived.npz: cannot be read",),
        breaks=removed("derived.npz"),
    ),
    Case(
        "derived-empty",
        ("resume", "tiny"),
        ("tiny/derived.npz: is damaged",),
        breaks=written("derived.npz", b""),
    ),
    Case(
        "derived-garbled",
        ("resume", "tiny"),
        ("tiny/derived.npz: is damaged",),
        breaks=written("derived.npz", b"PK\3\4" + b"\0" * 500),
    ),
    Case(
        "derived-is-one-array",
        ("resume", "tiny"),
        ("tiny/derived.npz: is damaged",),
        breaks=one_array,
    ),
    Case(
        "sources-broken",
        ("resume", "tiny"),
        ("tiny/sources.json: cannot be read",),
        breaks=written("sources.json", "{"),
    ),
    Case(
        "sources-not-a-list",
        ("resume", "tiny"),
        ("tiny/sources.json: expected a list of models",),
        breaks=written("sources.json", "{}"),
    ),
    Case(
        "sources-without-keys",
        ("resume", "tiny"),
        ("tiny/sources.json",),
        breaks=written("sources.json", "[{}]"),
    ),
    Case(
        "run-config-broken",
        ("status", "tiny"),
        ("tiny/config.yaml: line",),
        2,
        replaced("config.yaml", "seed: 5", "seed: ["),
    ),
    Case(
        "config-changed",
        ("resume", "tiny"),
        (
            "config.seed was 5, is 6",
            "evomerge search CONFIG --run NEW --warm-start populations/tiny",
        ),
        breaks=replaced("config.yaml", "seed: 5", "seed: 6"),
    ),
    Case(
        "range-changed",
        ("resume", "tiny"),
        ("config.merge.weights.high was 1.5, is 1.25",),
        breaks=replaced("config.yaml", "high: 1.5", "high: 1.25"),
    ),
    Case(
        "package-changed",
        ("resume", "tiny"),
        ("versions.torch was '1.0.0', is ", "--warm-start"),
        breaks=rechained(version),
    ),
    Case(
        "search-with-another-config",
        ("search", "c.yaml", "--run", "populations/tiny", "--set", "seed=9"),
        ("tiny: holds a run of another config",),
    ),
    Case(
        "search-over-a-file",
        ("search", "c.yaml", "--run", "c.yaml"),
        ("c.yaml",),
    ),
    Case(
        "search-below-a-file",
        ("search", "c.yaml", "--run", "c.yaml/new"),
        ("c.yaml/new: cannot be created",),
    ),
    Case(
        "search-over-other-files",
        ("search", "c.yaml", "--run", "models"),
        ("models: exists and is not an evomerge run",),
    ),
    Case(
        "warm-start-from-nothing",
        ("search", "c.yaml", "--run", "new", "--warm-start", "tinny"),
        ("tinny", "Did you mean 'tiny'?"),
    ),
    Case(
        "warm-start-of-an-existing-run",
        ("search", "c.yaml", "--run", "populations/tiny", "--warm-start", "tiny"),
        ("tiny: exists; --warm-start begins a new run",),
    ),
    Case(
        "warm-start-from-other-tasks",
        ("search", "c.yaml", "--run", "new", "--warm-start", "tiny", "--set", "tasks.0.name=a"),
        ("tiny: cannot warm-start from it: its tasks differ",),
    ),
    Case(
        "warm-start-without-scores",
        ("search", "c.yaml", "--run", "new", "--warm-start", "tiny"),
        ("scores.f32",),
        breaks=removed("scores.f32"),
    ),
    Case(
        "warm-start-from-an-empty-run",
        ("search", "c.yaml", "--run", "new", "--warm-start", "tiny"),
        ("tiny: has no successful evaluation",),
        breaks=rechained(lambda events: events.__delitem__(slice(1, None))),
    ),
]
ARGUMENTS = [
    Case("no-such-verb", ("serach", "c.yaml"), ("'serach'", "Did you mean 'search'?"), 2),
    Case("no-such-option", ("--fast",), ("--fast",), 2),
    Case("no-such-option-of-a-verb", ("status", "tiny", "--jsn"), ("--jsn",), 2),
    Case("missing-argument", ("search",), ("Missing argument 'CONFIG'",), 2),
    Case("missing-option", ("export", "tiny"), ("Missing option '--out'",), 2),
    Case("extra-argument", ("status", "tiny", "more"), ("more",), 2),
    Case("workers-not-a-number", ("resume", "tiny", "--workers", "x"), ("--workers",), 2),
    Case("zero-workers", ("resume", "tiny", "--workers", "0"), ("runtime.workers", "got 0"), 2),
    Case(
        "executor-typo",
        ("resume", "tiny", "--executor", "rai"),
        ("runtime.executor", "'ray'", "got 'rai'"),
        2,
    ),
    Case(
        "zero-evaluations",
        ("resume", "tiny", "--evaluations", "0"),
        ("budget.evaluations is 0, must be at least 1",),
        2,
    ),
    Case("config-missing", ("search", "d.yaml"), ("d.yaml: cannot be read: No such file",), 2),
    Case("config-is-a-folder", ("check", "models"), ("models: cannot be read: Is a dir",), 2),
    Case("config-below-a-file", ("check", "c.yaml/d"), ("c.yaml/d: cannot be read: Not a",), 2),
    Case("set-without-value", ("check", "c.yaml", "--set", "seed"), ("--set seed", "KEY=VALUE"), 2),
    Case("set-without-key", ("check", "c.yaml", "--set", "=5"), ("--set =5", "KEY=VALUE"), 2),
    Case("set-empty-part", ("check", "c.yaml", "--set", "a..b=5"), ("--set a..b=5",), 2),
    Case("set-bad-yaml", ("check", "c.yaml", "--set", "seed=["), ("--set seed=[", "line 1"), 2),
    Case(
        "set-unknown-key",
        ("check", "c.yaml", "--set", "budget.evals=5"),
        ("unknown key 'budget.evals'", "Did you mean 'evaluations'?"),
        2,
    ),
    Case(
        "set-no-such-item",
        ("check", "c.yaml", "--set", "tasks.2.name=x"),
        ("--set tasks.2.name=x: '2' is not one of 0..1",),
        2,
    ),
    Case(
        "set-list-by-name",
        ("check", "c.yaml", "--set", "tasks.up.name=x"),
        ("'up' is not one of 0..1",),
        2,
    ),
    Case(
        "set-below-a-number",
        ("check", "c.yaml", "--set", "seed.x.y=5"),
        ("--set seed.x.y=5: seed has no keys",),
        2,
    ),
    Case(
        "set-wrong-type",
        ("check", "c.yaml", "--set", "budget.evaluations=ten"),
        ("budget.evaluations", "got 'ten'"),
        2,
    ),
    Case("set-nan", ("check", "c.yaml", "--set", "merge.lambda_=.nan"), ("lambda_ is nan",), 2),
]
EXPORT = [
    Case(
        "pick-typo",
        ("export", "tiny", "--out", "out", "--pick", "kne"),
        ("'kne' is not a way to pick", "Did you mean 'knee'?"),
        2,
    ),
    Case(
        "pick-objective-typo",
        ("export", "tiny", "--out", "out", "--pick", "best:upp"),
        ("'upp' is not an objective", "Did you mean 'up'?"),
        2,
    ),
    Case(
        "pick-weights-typo",
        ("export", "tiny", "--out", "out", "--pick", "weights up=1,dwn=2"),
        ("'dwn' is not an objective", "Did you mean 'down'?"),
        2,
    ),
    Case(
        "pick-negative-weight",
        ("export", "tiny", "--out", "out", "--pick", "weights up=-1"),
        ("the weight of 'up' is '-1'",),
        2,
    ),
    Case(
        "no-such-candidate",
        ("export", "tiny", "--out", "out", "--pick", "candidate:99"),
        ("tiny: candidate 99 does not exist (there are 0 to 5)",),
        2,
    ),
    Case(
        "candidate-not-a-number",
        ("export", "tiny", "--out", "out", "--pick", "candidate:x"),
        ("'x' is not a candidate id",),
        2,
    ),
    Case(
        "candidate-failed",
        ("export", "tiny", "--out", "out", "--pick", "candidate:2"),
        ("tiny: candidate 2 failed, so it has no scores: ",),
        2,
        rechained(failed_candidate),
    ),
    Case(
        "nothing-scored",
        ("export", "tiny", "--out", "out"),
        ("tiny: no candidate has been scored yet",),
        3,
        rechained(lambda events: events.__delitem__(slice(1, None))),
    ),
    Case(
        "out-not-empty",
        ("export", "tiny", "--out", "models"),
        ("models: already exists and is not an empty folder",),
        2,
    ),
    Case("out-is-here", ("export", "tiny", "--out", "."), (": already exists",), 2),
    Case("out-is-a-file", ("export", "tiny", "--out", "c.yaml"), ("c.yaml: already exists",), 2),
    Case(
        "out-below-a-file",
        ("export", "tiny", "--out", "c.yaml/out"),
        ("c.yaml/out: cannot be written",),
        3,
    ),
    Case(
        "all-into-a-file",
        ("export", "tiny", "--pick", "all", "--out", "c.yaml"),
        ("c.yaml: is a file",),
        2,
    ),
    Case(
        "model-gone",
        ("export", "tiny", "--out", "out"),
        ("/nowhere: is neither a model folder nor",),
        3,
        lambda place: replaced("config.yaml", str(place.models.folder / "x"), "/nowhere")(place),
    ),
]
CASES = [*EVERY_VERB, *RUN, *ARGUMENTS, *EXPORT]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_refused_command_says_one_line_and_changes_nothing(case, place, evomerge):
    if "--warm-start" in case.argv:  # the same models as the finished run
        place.config = place.models.config(budget={"evaluations": 6})
    place.write()
    case.breaks(place)
    before = tree(place.folder, without=LEASE)
    assert_one_line(evomerge(*case.argv), case.code, case.says)
    after = tree(place.folder, without=LEASE)
    exported = [name for name in after if name.startswith("out/x/")]  # kept for inspection
    assert {name: after[name] for name in after if name not in exported} == before


def test_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


# -------------------------------------------------------------------------------- recipes


@pytest.fixture
def recipe(place, evomerge) -> Path:
    """recipe.json of an export."""
    assert evomerge("export", "tiny", "--pick", "candidate:1", "--out", "done").code == 0
    return place.folder / "done" / "recipe.json"


def edited(*path: str | int, to: Any) -> Callable[[dict], None]:
    def edit(body: Any) -> None:
        for part in path[:-1]:
            body = body[part]
        if to is None:
            del body[path[-1]]
        else:
            body[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "says", "code"),
    [
        (edited("sources", 1, "digest", to="0" * 32), ("is not the model this recipe", "000"), 3),
        (edited("sources", 1, "model", to="/nowhere"), ("'/nowhere'",), 3),
        (edited("sources", 1, "model", to="models/y"), ("is not the model this recipe",), 3),
        (edited("sources", 1, "id", to="base"), ("recipe.json", "no two alike"), 2),
        (edited("sources", 1, "id", to=""), ("recipe.json",), 2),
        (edited("sources", 1, "revision", to=5), ("recipe.json", "revision"), 2),
        (edited("sources", to=[]), ("recipe.json", "donor"), 2),
        (edited("sources", to=7), ("recipe.json", "malformed"), 2),
        (edited("donor", to="x"), ("first source must be the donor 'x'",), 2),
        (edited("recipe", to=None), ("recipe.json", "'recipe' is missing"), 2),
        (edited("recipe", "format", to=2), ("format is 2, expected 1",), 2),
        (edited("recipe", "operator", to="liner"), ("'liner'", "Did you mean 'linear'?"), 2),
        (edited("recipe", "params", to={"weigts": [[1]] * 4}), ("mean 'weights'?",), 2),
        (edited("recipe", "params", to={"weights": [[1, 2]]}), ("1 rows", "4 groups"), 2),
        (edited("recipe", "params", to={"weights": [[1, 2, 3]] * 4}), ("3", "2"), 2),
        (edited("recipe", "params", to={"weights": [[1, math.nan]] * 4}), ("finite",), 2),
        (edited("recipe", "params", to={"weights": "x"}), ("recipe.json: recipe",), 2),
        (edited("recipe", "params", to={"weights": [[1], [1, 2]]}), ("recipe.json: recipe",), 2),
        (edited("recipe", "sources", to=["base", "z"]), ("'z'",), 2),
        (edited("recipe", "grouping", to="layers"), ("'layers'", "Did you mean 'layer'?"), 2),
        (edited("recipe", "settings", to={"normalise": True}), ("mean 'normalize'?",), 2),
        (edited("recipe", "extra", to=1), ("unknown key 'extra'",), 2),
        (edited("dtype", to="float13"), ("'float13'", "Did you mean 'float32'?"), 2),
        (edited("dtype", to=[16]), ("dtype", "[16]"), 2),
    ],
)  # fmt: skip
def test_a_broken_recipe_is_refused(edit, says, code, recipe, place, evomerge):
    body = json.loads(recipe.read_text())
    edit(body)
    (place.folder / "recipe.json").write_text(json.dumps(body))
    before = tree(place.folder)
    assert_one_line(evomerge("merge", "recipe.json", "--out", "new"), code, says)
    assert tree(place.folder) == before


def test_the_folder_of_an_export_is_not_its_recipe(recipe, evomerge):
    done = evomerge("merge", recipe.parent.name, "--out", "new")
    assert_one_line(done, 2, ("is a folder; of an export, give done/recipe.json",), "ConfigError")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.json", None, ("r.json: cannot be read: No such file",)),
        ("r.json", "{", ("r.json: is not JSON",)),
        ("r.json", "[]", ("r.json: expected a JSON object",)),
        ("r.json", "[" * 100_000, ("r.json: is not JSON",)),
        ("r.json", b"\xff", ("r.json: is not JSON",)),
        ("r.json", "{}", ("r.json: is not the recipe.json of an export",)),
        ("k.yaml", "merge_method: tise\nmodels: [{model: models/x}]", ("mean 'ties'?",)),
        ("k.yaml", "merge_method: frankenmerge\nmodels: [{model: models/x}]", ("'frankenmerge'",)),
        ("k.yaml", "merge_method: linear", ("k.yaml: exactly one of `models` and `slices`",)),
        ("k.yaml", "merge_method: linear\nmodels: []", ("k.yaml: models: expected a list",)),
        ("k.yaml", "merge_metod: linear", ("k.yaml: merge_metod", "mean 'merge_method'?")),
        (
            "k.yaml",
            "merge_method: passthrough\nslices:\n- sources: [{model: models/x, layer_range: [0, 1]}]\n"
            "- sources: [{model: models/y, layer_range: [90, 92]}]",
            ("k.yaml: layer plan: layer 1 is layer 90 of 'y', which has ",),
        ),
        (
            "k.yaml",
            "merge_method: linear\nslices:\n- sources: [{model: models/x, layer_range: [2, 1]}]",
            ("k.yaml: slices.0.sources.0.layer_range", "[first layer, the one after the last]"),
        ),
        (
            "k.yaml",
            "merge_method: linear\nmodels:\n- {model: models/x, parameters: {weight: 1e-3}}",
            ("models.0.parameters.weight", "write 1.0e-3"),
        ),
        (
            "k.yaml",
            "merge_method: linear\ndtype: float13\nmodels:\n- {model: models/x}",
            ("dtype", "Did you mean 'float32'?"),
        ),
    ],
)
def test_a_broken_merge_file_is_refused(name, content, says, place, evomerge):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (place.folder / name).write_bytes(data)
    before = tree(place.folder)
    assert_one_line(evomerge("merge", name, "--out", "new"), 2, says)
    assert tree(place.folder) == before


def test_a_merge_by_relative_paths_can_be_repeated_from_its_recipe(place, evomerge):
    text = "merge_method: linear\nmodels:\n"
    text += "".join(f"- {{model: models/{n}, parameters: {{weight: 0.5}}}}\n" for n in "xy")
    (place.folder / "k.yaml").write_text(text)
    assert evomerge("merge", "k.yaml", "--out", "made").code == 0
    record = json.loads((place.folder / "made" / "recipe.json").read_text())
    assert all(Path(source["model"]).is_absolute() for source in record["sources"])
    said = evomerge("merge", "made/recipe.json", "--out", "again")
    assert said.code == 0, said.err


def test_a_merge_into_an_empty_current_folder_works(recipe, place, evomerge, monkeypatch):
    (place.folder / "here").mkdir()
    monkeypatch.chdir(place.folder / "here")
    assert evomerge("merge", recipe, "--out", ".").code == 0
    assert (place.folder / "here" / "model.safetensors").is_file()
    assert_one_line(
        evomerge("merge", recipe, "--out", place.folder / "here"), 2, ("here: already",)
    )


def test_a_run_needs_a_folder_of_its_own(place, evomerge, monkeypatch):
    place.write()
    (place.folder / "here").mkdir()
    monkeypatch.chdir(place.folder / "here")
    done = evomerge("search", "../c.yaml", "--run", ".")
    assert_one_line(done, 3, ("choose another folder",))


# --------------------------------------------------------- a run over the place's own models


def test_resume_names_the_model_that_changed(place, evomerge):
    place.write()
    assert evomerge("search", "c.yaml", "--run", "own").code == 0
    header, data = read_parts(place.weights("y"))
    write_parts(place.weights("y"), header, data[:-4] + b"\0\0\0\0")
    before = tree(place.folder)
    for verb in (("resume", "own"), ("export", "own", "--out", "out"), ("search", "c.yaml", "--run", "own")):  # fmt: skip
        done = evomerge(*verb)
        assert_one_line(done, 3, ("models/y: changed since the run began (1 tensors, first vit.",))
        assert "--warm-start" not in done.err, "scores of other models cannot be taken over"
    assert tree(place.folder) == before
    shutil.rmtree(place.model("y"))
    assert_one_line(evomerge("resume", "own"), 3, ("models/y: is neither a model folder",))


def test_resume_names_the_data_that_changed(place, evomerge):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 1, 4, 4)).astype(np.float32)
    np.savez(place.folder / "e.npz", pixel_values=images, labels=np.arange(8) % 3)
    task = {"name": "digits", "evaluator": {"name": "classification", "examples": "e.npz"}}
    place.put("tasks", [task])
    place.write()
    assert evomerge("search", "c.yaml", "--run", "own").code == 0
    np.savez(place.folder / "e.npz", pixel_values=images, labels=(np.arange(8) + 1) % 3)
    before = tree(place.folder, without=LEASE)
    done = evomerge("resume", "own")
    assert_one_line(done, 3, ("data.", "e.npz was '", "evomerge search CONFIG --run NEW"))
    assert "--warm-start" not in done.err, "scores of other examples cannot be taken over"
    (place.folder / "e.npz").unlink()
    assert_one_line(evomerge("resume", "own"), 3, ("e.npz: cannot read the examples",))
    del before["e.npz"]
    assert tree(place.folder, without=LEASE) == before


SCORERS = """
import numpy as np
def nan(subject): return [float("nan")] * 3
def short(subject): return [1.0]
def texts(subject): return ["a", "b", "c"]
def stops(subject): raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("nan", "3 of 3 scores on odd_scorers:nan are not finite, the first for example 0"),
        ("short", "odd_scorers:short returned 1 scores, expected n=3"),
        ("texts", "odd_scorers:texts failed: ValueError: could not convert string to float"),
    ],
)
def test_scores_that_make_no_sense_are_recorded_and_end_in_one_line(
    function, error, place, evomerge
):
    scored_by(place, function)
    done = evomerge("search", "c.yaml", "--run", "own")
    assert_one_line(done, 3, ("all 6 candidates failed", error), "EvaluationError: ")
    told = [event for event in journal(place.folder / "own") if event["kind"] == "told"]
    assert len(told) == 6
    assert all(error in event["error"] for event in told)
    assert evomerge("front", "own", "--json").out.strip() == "[]"
    assert json.loads(evomerge("status", "own", "--json").out)["failed"] == 6
    assert_one_line(evomerge("export", "own", "--out", "out"), 3, ("no candidate has been scored",))


def scored_by(place: Place, function: str) -> None:
    (place.folder / "odd_scorers.py").write_text(SCORERS)
    place.put("tasks", [{"name": "t", "evaluator": {
        "name": "python", "function": f"odd_scorers:{function}", "n": 3, "path": ".",
        "auto_class": "AutoModelForImageClassification",
    }}])  # fmt: skip
    place.write()


@pytest.fixture(autouse=True)
def _forget_the_scorers():
    yield
    sys.modules.pop("odd_scorers", None)


def test_a_second_ctrl_c_stops_at_once_with_75(place, evomerge):
    scored_by(place, "stops")
    done = evomerge("search", "c.yaml", "--run", "own")
    assert_one_line(done, 75, ("interrupted",))
    assert evomerge("resume", "own").code == 75, "the lease was given back"


def test_a_second_driver_is_refused(place, evomerge):
    holder = Lease(place.run)
    try:
        before = tree(place.folder)
        assert_one_line(evomerge("resume", "tiny"), 3, ("is running this search",), "RunLocked")
        assert json.loads(evomerge("status", "tiny", "--json").out)["state"] == "running"
        assert tree(place.folder) == before
    finally:
        holder.release()


def test_a_bug_is_not_taken_for_a_user_error(place, evomerge, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("evomerge.cli.inspect.status_command", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        evomerge("status", "tiny")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("search", "nowhere.yaml"), 2, "ConfigError: nowhere.yaml: cannot be read: No such"),
        (("check", "c.yaml", "--set", "merge.name=tie"), 2, "Did you mean 'ties'?"),
        (("resume", "tny"), 3, "RunError: tny: there is no such run folder. Did you mean 'tiny'?"),
        (("search", "c.yaml", "--run", "x", "--set", "models.0.model=e"), 3, "SourceError: "),
    ],
)
def test_a_process_behaves_the_same(argv, code, says, place):
    place.write()
    before = tree(place.folder)
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", *argv],
        cwd=place.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert tree(place.folder) == before
