"""`report` writes one file, or serves it; it never changes a run."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.cli.command import assert_one_line, tree


def test_a_report_of_a_real_run(place, evomerge):
    before = tree(place.run)
    done = evomerge("report", "tiny", "--out", "report.html")
    assert done.code == 0, done.err
    assert done.out.startswith("report -> report.html  (")
    text = place.folder.joinpath("report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'data-live="">(.*?)</script>', text).group(1))
    assert data["command"] == "evomerge export populations/tiny"
    assert [pick["label"] for pick in data["summary"]["picks"]] == [
        "best: up",
        "best: down",
        "knee",
    ]
    assert set(data["candidates"]["models"]) == {"base", "x", "y"}
    assert data["environment"]["machines"][0].startswith("Linux")
    labels = next(iter(data["recipes"]["labels"].values()))
    assert labels == ["embed", "layer.0", "layer.1", "head"]
    assert tree(place.run) == before
    done = evomerge("report", "tiny", "--out", "report.html", "--json")
    assert json.loads(done.out)["bytes"] > 4e6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--out FILE"),
        (("--live", "--out", "x.html"), "--out FILE"),
        (("--out", "x.html", "--port", "1"), "belong to --live"),
        (("--live", "--token", "short"), "8 or more letters"),
        (("--live", "--token", "has/a/slash"), "8 or more letters"),
    ],
)
def test_options_that_contradict_each_other(arguments, says, place, evomerge):
    assert_one_line(evomerge("report", "tiny", *arguments), 2, (says,), "ConfigError")


def test_what_cannot_be_reported_or_written(place, evomerge):
    assert_one_line(evomerge("report", "tinny", "--out", "x.html"), 3, ("Did you mean 'tiny'?",))
    done = evomerge("report", "tiny", "--out", "no/such/folder/x.html")
    assert_one_line(done, 3, ("there is no folder no/such/folder",), "RunError")
    (place.run / "journal.jsonl").unlink()
    done = evomerge("report", "tiny", "--out", "x.html")
    assert_one_line(done, 3, ("nothing was evaluated yet",), "RunError")
    assert not place.folder.joinpath("x.html").exists()


def test_a_live_report_is_served_until_ctrl_c(place):
    before = tree(place.run)
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "report", "tiny", "--live"],
        cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", address)
        with urllib.request.urlopen(address + "data.json", timeout=30) as answer:
            assert json.load(answer)["run"] == "tiny"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()
    assert tree(place.run) == before
