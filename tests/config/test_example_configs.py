"""Every file in configs/ is a config this version understands, down to the last key."""

from pathlib import Path

import pytest
import yaml

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.config.build import build_objectives, needs_span
from evomerge.config.construct import construct
from evomerge.config.merge_space import build_space
from evomerge.config.schema import load_config
from evomerge.config.transforms import resolve_transforms
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.evaluation.evaluator import evaluators
from evomerge.quickstart.run import config_text

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
TENSORS = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
)


def stand_in(config):
    """Return models of four tensors with the names that the config gives."""
    names = ["base"] if config.base_model else []
    names += [model.name or Path(model.model).name for model in config.models]
    specs = {name: TensorSpec(name, "F32", (2, 2)) for name in TENSORS}
    headers = [
        SourceHeader(name, "LlamaForCausalLM", specs, dict.fromkeys(TENSORS, name))
        for name in names
    ]
    return align(headers, has_base=config.base_model is not None)


def test_there_are_examples():
    names = {"digits", "llm_two_experts", "llm_transforms", "llm_choice", "ray_cluster"}
    names |= {
        "evo_merging_api",
        "llm_lm_eval",
        "llm_gsm8k_mgsm",
        "lora_population",
        "map_vits",
        "llm_vllm",
    }
    assert names <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_builds_everything_it_names(path):
    config = load_config(path)
    construct(search_algorithms, config.algorithm, "algorithm", path.parent)
    for task in config.tasks:
        construct(evaluators, task.evaluator, "evaluator", path.parent)
        if task.held_out is not None:
            body = {**task.evaluator, **task.held_out}
            assert body != task.evaluator
            construct(evaluators, body, "held_out", path.parent)
    assert build_objectives(config).names
    models = [m.model_copy(update={"name": m.name or Path(m.model).name}) for m in config.models]
    resolved = resolve_transforms(config.transforms, config.base_model, models, path.parent)
    assert len(resolved) == len(config.transforms)
    model = stand_in(config)
    space, _ = build_space(config.merge, model, founders=config.search.founders, span=None)
    assert needs_span(config) or space.dimension > 0


def test_the_digits_example_is_what_quickstart_runs():
    prefix = "../populations/quickstart-models/"
    example = yaml.safe_load((FOLDER / "digits.yaml").read_text().replace(prefix, ""))
    assert example.pop("name") == "digits"
    quickstart = yaml.safe_load(config_text())
    assert quickstart.pop("name") == "quickstart"
    assert example == quickstart
