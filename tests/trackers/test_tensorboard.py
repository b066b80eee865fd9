"""Event files, read back with TensorBoard's own reader."""

import json

import pytest

from evomerge.config.results import RunResults
from evomerge.config.run_steps import RunSteps
from evomerge.errors import RunError
from evomerge.trackers.tensorboard_tracker import TensorboardTracker
from tests.report.synthetic import Plan, write_run

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def charts(folder) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a folder: chart -> (step, value), as it arrived."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    return {
        tag: [(event.step, event.value) for event in seen.Scalars(tag)]
        for tag in seen.Tags()["scalars"]
    }


def texts(folder) -> dict[str, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    seen.Reload()
    tags = [tag for tag in seen.Tags()["tensors"] if tag.endswith("text_summary")]
    return {tag: seen.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags}


def test_charts_follow_the_journal(run, send):
    assert send(run, TensorboardTracker()) == 30
    results = RunResults(run)
    shown = charts(run.path / "trackers" / "tensorboard")
    scored = {n: e["objectives"] for n, e in enumerate(results.told, 1) if "objectives" in e}
    for index, name in enumerate(("maths", "chat")):
        assert [step for step, _ in shown[f"objective/{name}"]] == list(scored)
        values = [objectives[index] for objectives in scored.values()]
        assert [value for _, value in shown[f"objective/{name}"]] == pytest.approx(values)
        best = shown[f"best/{name}"]
        assert best[-1][1] == pytest.approx(max(values))
        assert [value for _, value in best] == sorted(value for _, value in best)
    assert shown["search/examples"][-1] == (30, 30 * 80)
    assert shown["search/failed"][-1] == (30, results.n_failed)
    assert shown["search/front"][-1] == (30, len(results.front()))
    assert shown["search/hypervolume"][-1][1] == pytest.approx(results.hypervolume())
    assert [step for step, _ in shown["candidate/seconds"]] == list(range(1, 31))


def test_front_and_config_are_texts(run, send):
    send(run, TensorboardTracker())
    found = texts(run.path / "trackers" / "tensorboard")
    best = RunResults(run).front_members()[0]
    row = f"| {best['candidate']} | {best['objectives']['maths']:.4f} |"
    assert row in found["front/text_summary"]
    assert "name: nsga2" in found["config/text_summary"]


def test_a_resume_adds_each_step_once(run, send, grow, tmp_path):
    tracker = lambda: TensorboardTracker(tmp_path / "tb")  # noqa: E731
    send(run, tracker())
    grow(run, range(30, 35))
    assert send(run, tracker()) == 5
    assert send(run, tracker()) == 0
    steps = [step for step, _ in charts(tmp_path / "tb")["search/examples"]]
    assert steps == list(range(1, 36))


def test_steps_sent_before_a_crash_are_not_shown_twice(run, send, tmp_path):
    send(run, TensorboardTracker(tmp_path / "tb"))
    note = tmp_path / "tb" / "evomerge.json"
    mark = list(RunSteps(run).poll())[19].mark
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sent": 20, "mark": mark}))
    assert send(run, TensorboardTracker(tmp_path / "tb")) == 10
    steps = [step for step, _ in charts(tmp_path / "tb")["search/examples"]]
    assert steps == list(range(1, 31))


def test_a_folder_of_another_run_is_refused(run, send, tmp_path):
    send(write_run(tmp_path / "other", Plan(n=5)), TensorboardTracker(tmp_path / "tb"))
    with pytest.raises(RunError, match="holds the results of another run"):
        send(run, TensorboardTracker(tmp_path / "tb"))


def test_a_link_deeper_in_a_run_folder_is_not_written_through(run, send, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    place = run.path / "trackers" / "tensorboard"
    place.mkdir(parents=True)
    (place / "evomerge.json.tmp").symlink_to(tmp_path / "precious")
    assert send(run, TensorboardTracker()) == 30
    assert (tmp_path / "precious").read_text() == "keep me"
