"""A submitted config means the same on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.config.schema import load_config, parse_config
from evomerge.config.submit import portable_config, read_requirements
from evomerge.errors import ConfigError

BODY = {
    "name": "tiny",
    "base_model": "./models/base",
    "models": [{"model": "org/hub-model", "lora": "lora"}, "../other", "local/here", "/abs/model"],
    "merge": "linear",
    "algorithm": "cma_es",
    "tasks": [
        {
            "name": "t",
            "evaluator": {"name": "perplexity", "examples": "data/t.jsonl"},
            "held_out": {"examples": "data/held.jsonl"},
        }
    ],
    "budget": {"evaluations": 4},
    "runtime": {"executor": "ray", "cache": "cache"},
}


def test_every_path_is_absolute_and_all_else_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "local" / "here").mkdir(parents=True)
    config = parse_config(BODY, "config")
    made = portable_config(config, tmp_path)
    assert made.base_model is not None
    assert made.base_model.model == str(tmp_path / "models/base")
    assert [m.model for m in made.models] == [
        "org/hub-model", str(tmp_path / "../other"), str(tmp_path / "local/here"), "/abs/model",
    ]  # fmt: skip
    assert made.models[0].lora == str(tmp_path / "lora")
    assert made.tasks[0].evaluator["examples"] == str(tmp_path / "data/t.jsonl")
    assert made.tasks[0].held_out == {"examples": str(tmp_path / "data/held.jsonl")}
    assert made.runtime.cache == str(tmp_path / "cache")
    # The cluster decides on these; they must not be this machine's.
    assert (made.runtime.workers, made.search.look_ahead) == (None, None)
    assert made.algorithm == config.algorithm


def test_it_is_the_same_run_however_often_it_is_submitted(tmp_path: Path) -> None:
    made = portable_config(parse_config(BODY, "config"), tmp_path)
    (tmp_path / "sent.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    again = load_config(tmp_path / "sent.yaml")
    assert portable_config(again, Path("/elsewhere")).replay_part() == made.replay_part()


def test_requirements_are_pinned(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("evomerge==0.1.0  # ours\n\nray[default]==2.60.0\n")
    assert read_requirements(file) == ["evomerge==0.1.0", "ray[default]==2.60.0"]


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "-r other.txt", "git+https://x/y", "a==1 b"])
def test_what_is_not_pinned_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"evomerge==0.1.0\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2: .* is not NAME==VERSION"):
        read_requirements(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_requirements(tmp_path / "none.txt")
