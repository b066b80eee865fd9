"""The `transforms:` section: checked, filled with defaults, opened as sources."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config.merge_file import merge_file
from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig, TransformConfig, parse_config
from evomerge.config.session import preflight
from evomerge.config.transforms import fill_transforms, resolve_transforms
from evomerge.errors import ConfigError, SourceError
from evomerge.merging.transform import DeltaInputs, TransformDefaults, delta_transforms
from evomerge.storage.derived_cache import DerivedCache

BASE = ModelConfig(model="b", name="base")
MODELS = [ModelConfig(model=name, name=name) for name in ("x", "y")]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resolve(*entries, base=BASE, models=MODELS):
    transforms = [TransformConfig.model_validate(entry) for entry in entries]
    return resolve_transforms(transforms, base, models, Path())


def test_every_default_is_spelled_out():
    (entry,) = resolve({"name": "tsv_m"})
    assert (entry.of, entry.label, entry.keep_parents) == (["x", "y"], "tsv_m", True)
    assert entry.parameters == {"share": "equal", "rank_fraction": 1.0}
    again = resolve(entry.model_dump())
    assert again == [entry]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "tsvm"}], "transforms.0.name: 'tsvm' is not a known delta transform. Did you"),
        ([{"name": "tsv_m", "of": ["x", "z"]}], "transforms.0.of: 'z' is none of `models:`"),
        ([{"name": "tsv_m", "of": ["base"]}], "transforms.0.of: 'base' is none of"),
        ([{"name": "tsv_m", "of": []}], "transforms.0.of: names no model"),
        ([{"name": "tsv_m", "of": ["x", "x"]}], "transforms.0.of: names a model twice"),
        ([{"name": "tsv_m", "rank": 2}], "transforms.0.rank is not a parameter of 'tsv_m'"),
        ([{"name": "tsv_m", "rank_fraction": "a"}], "transforms.0.rank_fraction: "),
        ([{"name": "tsv_m"}, {"name": "tsv_m"}], "transforms.1.label: there is a source 'tsv_m'"),
        ([{"name": "wudi", "time": float("inf")}], "transforms.0.time is inf; expected a finite"),
        ([{"name": "iso_c", "label": "x"}], "transforms.0.label: there is a source 'x' already"),
    ],
)
def test_what_is_wrong_is_named(entries, message):
    with pytest.raises(ConfigError) as caught:
        resolve(*entries)
    assert str(caught.value).startswith(message)


def test_a_transform_needs_a_base():
    with pytest.raises(ConfigError, match=r"transforms: .* give a `base_model:`"):
        resolve({"name": "tsv_m"}, base=None)


def body(folder, **changes):
    return {
        "name": "n",
        "base_model": str(folder / "base"),
        "models": [
            {"name": "x", "model": str(folder / "x")},
            {"name": "y", "model": str(folder / "y")},
        ],
        "transforms": [{"name": "tsv_m", "label": "tsv"}],
        "merge": "task_arithmetic",
        "algorithm": "random",
        "tasks": [],
        "budget": {"evaluations": 5},
        **changes,
    }


def test_the_schema_takes_short_and_long_forms():
    tasks = [{"name": "t", "evaluator": "python"}]
    config = parse_config(
        body(Path("m"), transforms=["tsv_m", {"name": "iso_c"}], tasks=tasks), "c"
    )
    assert [item.name for item in config.transforms] == ["tsv_m", "iso_c"]
    with pytest.raises(ConfigError, match="label"):
        parse_config(body(Path("m"), transforms=[{"name": "a", "label": "a b"}], tasks=tasks), "c")


def test_a_config_without_transforms_replays_as_before():
    tasks = [{"name": "t", "evaluator": "python"}]
    plain = parse_config(body(Path("m"), transforms=[], tasks=tasks), "c")
    assert "transforms" not in plain.replay_part()
    assert "transforms" in parse_config(body(Path("m"), tasks=tasks), "c").replay_part()


def opened(tiny, cache, *entries, **options):
    base = ModelConfig(model=str(tiny.folder / "base"), name="base")
    models = [ModelConfig(model=str(tiny.folder / name), name=name) for name in ("x", "y")]
    transforms = resolve(*entries, base=base, models=models)
    return open_sources(base, models, transforms=transforms, cache=DerivedCache(cache), **options)


def test_virtual_sources_come_after_the_models(tiny_models, tmp_path):
    models = opened(tiny_models, tmp_path, {"name": "tsv_m", "label": "tsv"}, {"name": "iso_c"})
    assert models.space.sources == ("base", "x", "y", "tsv:x", "tsv:y", "iso_c")
    assert [record["id"] for record in models.record] == list(models.space.sources)
    assert models.record[3]["transform"]["rank_fraction"] == 1.0
    assert not list(tmp_path.rglob("*.safetensors")), "opening computes nothing"
    seen = []
    fill_transforms(models.virtual, lambda *progress: seen.append(progress))
    assert {label for label, *_ in seen} == {"tsv", "iso_c"}
    assert list(tmp_path.rglob("*.safetensors"))


def test_parents_can_be_left_out_of_the_search(tiny_models, tmp_path):
    models = opened(tiny_models, tmp_path, {"name": "tsv_m", "of": ["x"], "keep_parents": False})
    assert models.space.sources == ("base", "y", "tsv_m:x")
    assert {record["id"] for record in models.record} == {"base", "x", "y", "tsv_m:x"}


def test_a_changed_transform_is_named_on_resume(tiny_models, tmp_path, monkeypatch):
    known = opened(tiny_models, tmp_path, {"name": "tsv_m"}).record
    opened(tiny_models, tmp_path, {"name": "tsv_m"}, known=known)
    monkeypatch.setattr(delta_transforms.get("tsv_m"), "version", 99)
    with pytest.raises(SourceError, match="tsv_m:x: is computed otherwise"):
        opened(tiny_models, tmp_path, {"name": "tsv_m"}, known=known)


def prepared(tiny, tmp_path, **changes):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny.config(**changes)))
    config = parse_config(tiny.config(**changes), "c.yaml")
    return preflight(config, tmp_path)


def test_founders_are_the_sources_and_the_methods_own_merge(tiny_models, tmp_path):
    found = prepared(
        tiny_models,
        tmp_path,
        transforms=[{"name": "tsv_m", "label": "tsv"}, "iso_c"],
        merge={"name": "task_arithmetic", "groups": "global"},
    ).space.founders
    rows = {
        p.origin: p.recipe.params["weights"][0].tolist()
        for p in found
        if p.recipe.operator != "model_stock"
    }
    assert rows["founder: tsv:x"] == [0, 0, 1, 0, 0]
    assert rows["founder: tsv"] == [0, 0, 1, 1, 0]
    assert rows["founder: iso_c"] == [0, 0, 0, 0, 1]
    # The mean and task arithmetic stay those of the models.
    assert rows["founder: mean of the models"] == [0.5, 0.5, 0, 0, 0]
    assert rows["founder: task arithmetic 0.3"] == pytest.approx([0.3, 0.3, 0, 0, 0])


def test_founders_without_the_parents(tiny_models, tmp_path):
    space = prepared(
        tiny_models, tmp_path, transforms=[{"name": "tsv_m", "keep_parents": False}]
    ).space
    assert space.sources == ("base", "tsv_m:x", "tsv_m:y")
    origins = [proposal.origin for proposal in space.founders]
    assert "founder: tsv_m" in origins
    assert "founder: mean of the models" not in origins


def test_the_resolved_config_holds_parameters_and_cache(tiny_models, tmp_path):
    runtime = {"workers": 1, "threads": 1, "cache": "kept"}
    config = prepared(tiny_models, tmp_path, transforms=["tsv_m"], runtime=runtime).config
    assert config.transforms[0].parameters["share"] == "equal"
    assert config.runtime.cache == str(tmp_path / "kept")


def two_matrices(folder, name, seed):
    (folder / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": torch.randn((6, 5), generator=generator)
        for layer in range(2)
    }
    save_file(tensors, folder / name / "model.safetensors")
    (folder / name / "config.json").write_text('{"model_type": "llama"}')
    return tensors


def mergekit_file(folder, **changes):
    text = {
        "merge_method": "tsv_m",
        "base_model": "./base",
        "models": [
            {"model": "./one", "parameters": {"weight": 0.5}},
            {"model": "./two"},
        ],
        "parameters": {"lambda": 2.0, "rank_fraction": 0.5},
        **changes,
    }
    (folder / "m.yml").write_text(yaml.safe_dump(text))
    return folder / "m.yml"


def test_a_mergekit_yaml_of_a_transform_is_merged(tmp_path):
    base, one, two = (two_matrices(tmp_path, n, s) for s, n in enumerate(("base", "one", "two")))
    merge_file(mergekit_file(tmp_path), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    transform = delta_transforms.get("tsv_m")(rank_fraction=0.5)
    for name, tensor in merged.items():
        deltas = (one[name] - base[name], two[name] - base[name])
        first, second = transform.transform(DeltaInputs(name, base[name], deltas), None)
        torch.testing.assert_close(tensor, base[name] + 2.0 * (0.5 * first + second))
    again = merge_file(tmp_path / "out" / "recipe.json", tmp_path / "again")
    assert "computed by a transform" in again.no_mergekit_reason
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(tensor, merged[name])


def test_a_merged_transform_has_one_scale(tmp_path):
    for seed, name in enumerate(("base", "one", "two")):
        two_matrices(tmp_path, name, seed)
    models = [{"model": "./one"}, {"model": "./two"}]
    file = mergekit_file(tmp_path, merge_method="iso_c", models=models, parameters={"lambda": 0.5})
    merge_file(file, tmp_path / "out")
    with pytest.raises(ConfigError, match="weight is not a parameter of iso_c"):
        merge_file(mergekit_file(tmp_path, merge_method="iso_c", parameters={}), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": None}, "base_model is missing; tsv_m needs it"),
        ({"parameters": {"density": 1}}, "parameters.density is not a parameter of tsv_m"),
        ({"parameters": {"rank_fractoin": 1}}, "Did you mean 'rank_fraction'? Known: lambda, "),
        ({"parameters": {"rank_fraction": 7}}, "parameters: "),
        ({"models": [{"model": "./base"}]}, "is given twice"),
        ({"slices": []}, "slices: evomerge does not read this key"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of"),
        ({"parameters": {"lambda": [0.1, 0.2]}}, "one value for the whole model"),
        ({"merge_method": "tsvm"}, "Did you mean 'tsv_m'"),
    ],
)
def test_a_mergekit_yaml_that_is_wrong_is_refused(tmp_path, changes, message):
    for seed, name in enumerate(("base", "one", "two")):
        two_matrices(tmp_path, name, seed)
    with pytest.raises(ConfigError, match=r"m\.yml") as caught:
        merge_file(mergekit_file(tmp_path, **changes), tmp_path / "out")
    assert message in str(caught.value)


def test_further_outputs_are_sources_of_their_own(tiny_models, tmp_path):
    models = opened(tiny_models, tmp_path, {"name": "twin", "keep": 1.0})
    assert models.space.sources[3:] == ("twin:x", "twin:y", "twin:shared")
    name = models.space.merged[0].spec.name
    deltas = [models.sources[f"twin:{end}"].exact_delta(name) for end in ("x", "shared")]
    whole = models.sources["x"].read(name) - models.sources["base"].read(name)
    torch.testing.assert_close(deltas[0] + deltas[1], whole)


def test_a_plug_in_transform_can_be_used(tiny_models, tmp_path, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Twice(TransformDefaults):
        outputs: ClassVar = "experts"

        def transform(self, tensors, survey):
            return tuple(2.0 * delta for delta in tensors.deltas)

    monkeypatch.setitem(delta_transforms._classes, "twice_for_tests", Twice)
    models = opened(tiny_models, tmp_path, {"name": "twice_for_tests", "of": ["y"]})
    name = models.space.merged[0].spec.name
    base, y = models.sources["base"].read(name), models.sources["y"].read(name)
    got = models.sources["twice_for_tests:y"].exact_delta(name)
    assert np.array_equal(got.numpy(), (2.0 * (y - base)).numpy())
