"""What `check` says about where experts come from, on real small models."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evomerge.config.findings.lineage import lineage_findings
from evomerge.config.models import open_models, open_sources
from evomerge.config.schema import ModelConfig
from evomerge.merging.kinship import change_cosine, cosine_to_first, kinship, relative_change
from tests.evaluation.tiny_models import FAMILIES, file_tensors, make, save


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, two fine-tunes of it, a copy of the first, and a model from other random weights."""
    home = tmp_path_factory.mktemp("lineage")
    kind = FAMILIES["llama"][:3]
    base = make(*kind, seed=0)
    save(base, home / "base")
    for seed, name in ((1, "x"), (2, "y")):
        model = make(*kind, seed=0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.05 * parameter.std() * noise)
        save(model, home / name)
    shutil.copytree(home / "x", home / "copy")
    save(make(*kind, seed=9), home / "stranger")
    return home


def opened(folders, *names, base="base"):
    ref = None if base is None else ModelConfig(model=str(folders / base), name="base")
    return open_sources(ref, [ModelConfig(model=str(folders / n), name=n) for n in names])


def marks(findings):
    return [item.mark for item in findings]


def test_fine_tunes_of_the_base_are_close_to_it(folders):
    findings, figures = lineage_findings(opened(folders, "x", "y"))
    assert marks(findings) == ["✓", "✓"]
    assert "2 of 2 close to the base 'base'" in findings[0].text
    assert [row["group"] for row in figures["experts"]["x"]["groups"]] == [
        "embed",
        "layer.0",
        "layer.1",
        "head",
    ]
    assert figures["experts"]["x"]["relative_norm"] == pytest.approx(0.05, rel=0.1)
    (pair,) = figures["task_vectors"]
    assert abs(pair["cosine"]) < 0.1


def test_a_model_of_other_weights_is_named_with_a_remedy(folders):
    findings, figures = lineage_findings(opened(folders, "x", "stranger"))
    (found,) = [item for item in findings if item.mark == "✗"]
    assert "'stranger' is unrelated to 'base'" in found.text
    assert "base_model" in found.remedy
    assert abs(figures["experts"]["stranger"]["cosine"]) < 0.1


def test_copies_of_the_base_and_of_an_expert_are_named(folders):
    shutil.copytree(folders / "base", folders / "again", dirs_exist_ok=True)
    findings, _ = lineage_findings(opened(folders, "x", "copy", "again"))
    said = [item.text for item in findings if item.mark == "✗"]
    assert said == [
        "'copy' holds the same weights as 'x'",
        "'again' holds the same weights as the base 'base'",
    ]


def test_without_a_base_the_first_model_is_what_others_are_held_against(folders):
    findings, figures = lineage_findings(opened(folders, "x", "y", base=None))
    assert (marks(findings), figures["is_base"]) == (["✓"], False)
    strangers = opened(folders, "x", "stranger", base=None)
    assert marks(lineage_findings(strangers)[0]) == ["✗"]
    assert marks(lineage_findings(strangers, from_scratch=True)[0]) == ["!"]


def test_experts_of_another_base_point_the_same_way(folders, tmp_path):
    tensors = file_tensors(folders / "base")
    generator = torch.Generator().manual_seed(5)
    moved = {
        name: value + 0.3 * value.std() * torch.randn(value.shape, generator=generator)
        if value.ndim > 1
        else value
        for name, value in tensors.items()
    }
    for seed, name in ((1, "a"), (2, "b")):
        shutil.copytree(folders / "base", tmp_path / name)
        own = torch.Generator().manual_seed(seed)
        tuned = {
            key: value + 0.02 * torch.randn(value.shape, generator=own) * tensors[key].std()
            if value.ndim > 1
            else value
            for key, value in moved.items()
        }
        save_file(tuned, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    base = ModelConfig(model=str(folders / "base"), name="base")
    models = [ModelConfig(model=str(tmp_path / name), name=name) for name in "ab"]
    findings, _ = lineage_findings(open_sources(base, models))
    (found,) = [item for item in findings if item.mark == "!"]
    assert "the task vectors of 'a', 'b' point the same way" in found.text


def test_samples_come_near_the_figures_of_all_elements(folders):
    models = opened(folders, "x", "y")
    whole = kinship(models.space, models.sources).whole()
    few = kinship(models.space, models.sources, sample=1)
    assert few.n_sampled < few.n_elements
    for measure in (cosine_to_first, relative_change):
        assert measure(few.whole(), 1) == pytest.approx(measure(whole, 1), rel=0.05)
    assert abs(change_cosine(few.whole(), 1, 2) - change_cosine(whole, 1, 2)) < 0.05


def test_figures_are_those_of_a_dense_computation(folders):
    models = opened(folders, "x", "y")
    gram = kinship(models.space, models.sources).whole()
    flat = [
        np.concatenate([v.double().numpy().ravel() for v in _matrices(folders / name).values()])
        for name in ("base", "x", "y")
    ]
    base, x, y = flat
    cosine = base @ x / np.linalg.norm(base) / np.linalg.norm(x)
    assert cosine_to_first(gram, 1) == pytest.approx(cosine, rel=1e-12)
    norm = np.linalg.norm(x - base) / np.linalg.norm(base)
    assert relative_change(gram, 1) == pytest.approx(norm, rel=1e-12)
    between = (x - base) @ (y - base) / np.linalg.norm(x - base) / np.linalg.norm(y - base)
    assert change_cosine(gram, 1, 2) == pytest.approx(between, rel=1e-9)


def _matrices(folder):
    tensors = file_tensors(folder)
    return {name: tensors[name] for name in sorted(tensors) if tensors[name].ndim > 1}


def test_parents_of_transforms_are_looked_at_too(tiny_models, tmp_path):
    from evomerge.config.build import resolve_config
    from evomerge.config.schema import load_config

    changes = {"transforms": [{"name": "tsv_m", "keep_parents": False}]}
    path = tiny_models.write(tmp_path / "c.yaml", **changes)
    models = open_models(resolve_config(load_config(path), tmp_path))
    _, figures = lineage_findings(models)
    assert set(figures["experts"]) == {"x", "y"}
