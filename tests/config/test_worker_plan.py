"""What a run's workers need, where they go, and what the config then says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.config import worker_plan
from evomerge.config.model_size import merge_bytes
from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig, RunConfig, load_config, parse_config
from evomerge.config.session import open_or_create, preflight
from evomerge.config.worker_plan import plan_facts, plan_table, with_plan, worker_need
from evomerge.errors import RunError
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.runtime.placement import default_look_ahead
from evomerge.runtime.placement_plan import ModelNeed, NodeFacts, Wishes, plan_workers
from evomerge.storage.run_store import RunFolder
from tests.cli.command import command
from tests.e2e.tiny_run import evomerge
from tests.evaluation import tiny_models as language

GIB = 2**30
NODES = [
    NodeFacts("a", 16, 64 * GIB, (24 * GIB,) * 2, "1"),
    NodeFacts("b", 16, 64 * GIB, (24 * GIB,) * 2, "2"),
    NodeFacts("c", 16, 64 * GIB, (80 * GIB,), "3"),
    NodeFacts("head", 4, 8 * GIB, (), "4"),
]
B7 = ModelNeed(7_000_000_000, 14_000_000_000, 2 * GIB, GIB, 8 * GIB)
RAY = {"executor": "ray", "threads": 1}


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_plan, "local_node", lambda: NodeFacts("laptop", 3, 16 * GIB))


def test_small_runs_look_as_far_ahead_as_ever_and_large_ones_farther() -> None:
    assert [default_look_ahead(n) for n in (1, 2, 5, 8)] == [3, 6, 15, 24]
    assert [default_look_ahead(n) for n in (16, 64, 1024)] == [64, 384, 10240]
    found = [default_look_ahead(n) for n in range(1, 300)]
    assert found == sorted(found)


def test_the_need_follows_from_the_models(tiny_models, tmp_path: Path) -> None:
    path = tiny_models.write(tmp_path / "c.yaml")
    prepared = preflight(load_config(path), tmp_path)
    need = worker_need(prepared.config, prepared.models, prepared.tasks.search)
    assert need.parameters == prepared.models.space.n_elements
    assert need.weight_bytes == 4 * need.parameters
    assert 0 < need.least_bytes < need.full_bytes
    assert need.cpu_bytes < need.full_bytes


def write_models(folder: Path) -> Path:
    """Write two language models and one example; return the example's file."""
    for seed, name in enumerate("xy"):
        made = language.make("LlamaForCausalLM", "LlamaConfig", language.DECODER, seed=seed)
        language.save(made, folder / name)
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "options": [" b", " c"], "gold": 0}\n')
    return rows


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"device": "cuda:all"}, "`engine:` of task 't' uses one; give one device"),
        ({"gpus_per_worker": 2, **RAY}, "runtime.gpus_per_worker: 2 means several GPUs"),
    ],
)
def test_check_refuses_several_gpus_for_one_engine(
    tmp_path: Path, capsys, runtime: dict[str, object], message: str
) -> None:
    rows = write_models(tmp_path)
    task = {"name": "multiple_choice", "examples": str(rows), "engine": {"name": "vllm"}}
    body = {
        "name": "engine",
        "models": [str(tmp_path / name) for name in "xy"],
        "merge": "linear",
        "tasks": [{"name": "t", "evaluator": task}],
        "budget": {"evaluations": 4},
        "runtime": runtime,
    }
    (tmp_path / "c.yaml").write_text(json.dumps(body))  # which is YAML as well
    done = command(capsys, "check", tmp_path / "c.yaml", "--no-dry-run")
    assert done.code == 2
    assert message in done.err


def plain_config(**algorithm: object) -> RunConfig:
    task = {"name": "a", "evaluator": {"name": "multiple_choice", "examples": "rows.jsonl"}}
    body = {
        "name": "c",
        "models": [{"model": "x"}, {"model": "y"}],
        "merge": {"name": "linear", "normalize": False},
        "algorithm": {"name": "m2n2", **algorithm},
        "tasks": [task],
        "budget": {"evaluations": 1000},
    }
    return parse_config(body, "c.yaml")


def test_noise_and_ancestors_are_counted(tmp_path: Path) -> None:
    write_models(tmp_path)
    models = open_sources(None, [ModelConfig(name=n, model=str(tmp_path / n)) for n in "xy"])
    largest = 4 * max(tensor.spec.n_elements for tensor in models.space.merged)
    plain, scratch, short = (
        merge_bytes(models, plain_config(**keys))
        for keys in ({}, {"mutation": 0.01}, {"mutation": 0.01, "max_noise": 4})
    )
    assert plain == 4 * largest
    assert scratch - plain >= 35 * largest
    assert scratch - short == 28 * largest
    kept = scratch - plain - 36 * largest
    assert kept == 8 * models.space.n_elements * 1000


def test_an_engine_beside_transformers_holds_the_model_once_more(tmp_path: Path) -> None:
    rows = write_models(tmp_path)
    models = open_sources(None, [ModelConfig(name=n, model=str(tmp_path / n)) for n in "xy"])
    plain = MultipleChoice(examples=rows)
    engine = MultipleChoice(examples=rows, engine=VllmEngine(name="vllm"))
    config = plain_config()
    one, both = (
        worker_need(config, models, tasks) for tasks in ({"a": plain}, {"a": plain, "b": engine})
    )
    assert both.weight_bytes == 2 * one.weight_bytes
    assert one.divides
    assert not both.divides


@pytest.mark.usefixtures("laptop")
def test_workers_and_look_ahead_follow_from_the_plan(tiny_models, tmp_path: Path) -> None:
    path = tiny_models.write(tmp_path / "c.yaml", runtime=RAY, search={})
    prepared = preflight(load_config(path), tmp_path)
    assert prepared.config.runtime.workers == 3
    assert prepared.config.search.look_ahead == 9
    assert prepared.plan is not None
    assert prepared.plan.shapes()[0].bundle() == {"CPU": 1.0}


@pytest.mark.usefixtures("laptop")
def test_the_look_ahead_of_a_run_stays_whatever_the_cluster_is_later(
    tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_models.write(tmp_path / "c.yaml", runtime=RAY, search={}))
    folder = RunFolder(tmp_path / "run")
    made, existed = open_or_create(config, tmp_path, folder)
    assert (made.search.look_ahead, existed) == (9, False)
    monkeypatch.setattr(worker_plan, "local_node", lambda: NodeFacts("big", 64, 512 * GIB))
    again, existed = open_or_create(config, tmp_path, folder)
    assert (again.search.look_ahead, existed) == (9, True)


def test_the_groups_of_a_run_stay_whatever_is_chosen_later(tiny_models, tmp_path: Path) -> None:
    auto = {"merge": {"name": "task_arithmetic"}, "algorithm": {"name": "auto"}}
    config = load_config(tiny_models.write(tmp_path / "c.yaml", **auto))
    folder = RunFolder(tmp_path / "run")
    made, _ = open_or_create(config, tmp_path, folder)
    assert made.merge["groups"] not in (None, "global")
    # As an earlier version chose.
    text = folder.config.read_text()
    assert text.count(f"groups: {made.merge['groups']}\n") == 1
    folder.config.write_text(text.replace(made.merge["groups"], "global"))
    again, existed = open_or_create(config, tmp_path, folder)
    assert (again.merge["groups"], existed) == ("global", True)
    named = {**auto["merge"], "groups": "kind"}
    other = load_config(tiny_models.write(tmp_path / "c.yaml", **auto | {"merge": named}))
    with pytest.raises(RunError, match=r"another config: merge\.groups"):
        open_or_create(other, tmp_path, folder)


def test_only_groups_that_the_algorithm_chose_stay(tiny_models, tmp_path: Path) -> None:
    merge = {"name": "task_arithmetic"}
    path, folder = tmp_path / "c.yaml", RunFolder(tmp_path / "run")
    layers = load_config(tiny_models.write(path, merge={**merge, "groups": "layer"}))
    open_or_create(layers, tmp_path, folder)
    one_group = load_config(tiny_models.write(path, merge=merge))
    with pytest.raises(RunError, match=r"another config: merge\.groups"):
        open_or_create(one_group, tmp_path, folder)


def test_on_a_cluster_the_number_of_workers_stays_open(tiny_models, tmp_path: Path) -> None:
    runtime = {**RAY, "address": "auto"}
    config = load_config(tiny_models.write(tmp_path / "c.yaml", runtime=runtime, search={}))
    found = with_plan(config, plan_workers(NODES, B7))
    assert found.runtime.workers is None
    assert found.search.look_ahead == default_look_ahead(7) == 21


def test_a_plan_is_a_short_table_and_json() -> None:
    facts = plan_facts(plan_workers(NODES, B7))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["workers"] == 7
    assert plan_table(facts) == [
        "  node     has free                           workers",
        "  2 nodes  16 CPUs, 64 GiB, 2 GPUs of 24 GiB  2 x 1 GPU (16.6 GiB)",
        "  c        16 CPUs, 64 GiB, 1 GPUs of 80 GiB  3 x 0.3333 GPU (23.6 GiB)",
        "  head     4 CPUs, 8 GiB                      0: has no GPU, others have",
    ]
    waiting = plan_facts(plan_workers(NODES[:2], B7, Wishes(workers=6)))
    assert plan_table(waiting)[-1] == "  2 more wait for nodes that join"


@pytest.mark.usefixtures("laptop")
def test_check_prints_the_plan(tiny_models, tmp_path: Path, capsys) -> None:
    path = tiny_models.write(tmp_path / "c.yaml", runtime=RAY, search={})
    done = command(capsys, "check", path, "--no-dry-run")
    assert "✓ placement: 3 workers" in done.out
    assert "laptop  3 CPUs, 16 GiB  3 x 1 CPU" in done.out
    facts = json.loads(command(capsys, "check", path, "--no-dry-run", "--json").out)
    assert facts["placement"]["nodes"][0]["workers"] == 3
    assert (facts["workers"], facts["look_ahead"]) == (3, 9)


def test_what_fits_nowhere_is_refused_before_there_is_a_run(
    tiny_models, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_plan, "local_node", lambda: NodeFacts("tiny", 2, GIB // 4))
    path = tiny_models.write(tmp_path / "c.yaml", runtime=RAY, search={})
    done = command(capsys, "search", path, "--run", tmp_path / "run")
    assert done.code == 2
    assert "no node can hold a worker" in done.err
    assert "tiny: 0.2 GiB of free memory" in done.err
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_cannot_be_asked_is_no_trouble_for_a_check(
    tiny_models, tmp_path: Path
) -> None:
    runtime = {**RAY, "address": "127.0.0.1:1", "workers": 2}
    path = tiny_models.write(tmp_path / "c.yaml", runtime=runtime)
    # A process of its own: one that has joined a cluster plans for that.
    done = evomerge("check", path, "--no-dry-run")
    assert done.returncode == 0, done
    assert "! placement: no Ray cluster" in done.stdout
