"""Element-wise merge methods, searched layer by layer and exported through the command line."""

import numpy as np
import pytest
import torch

from tests.e2e import merge_formulas as formulas
from tests.e2e import real_project as rp
from tests.merging import (
    test_arcee_fusion,
    test_breadcrumbs,
    test_consensus,
    test_localize_and_stitch,
    test_magmax,
    test_nearswap,
    test_ram,
    test_sce,
)
from tests.merging.tensors import inputs_of


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tied Llama and two experts."""
    return rp.save_family(tmp_path_factory.mktemp("models"), rp.llama(tie_word_embeddings=True))


def breadcrumbs(row, inputs, *, vote):
    fixed = {"density": float(row["density"]), "gamma": float(row["gamma"]), "lambda_": 1.0}
    return test_breadcrumbs.oracle(inputs, row["weights"], vote=vote, compat="mergekit", **fixed)


def fused(row, inputs):
    base, expert = inputs.base, inputs.experts[0]
    scores, threshold = test_arcee_fusion.oracle(base, expert, float(row["multiplier"]))
    is_taken = torch.as_tensor(scores >= threshold).reshape(base.shape)
    return torch.where(is_taken, expert, base).double()


# Name -> (merge section, formula of one tensor)
METHODS = {
    "breadcrumbs": (
        {"compat": "mergekit", "density": [0.2, 0.8], "gamma": "search"},
        lambda row, inputs: breadcrumbs(row, inputs, vote=False),
    ),
    "breadcrumbs_ties": (
        {"compat": "mergekit", "density": "search", "gamma": [0.0, 0.2]},
        lambda row, inputs: breadcrumbs(row, inputs, vote=True),
    ),
    "sce": (
        {"select": "search", "q": "search"},
        lambda row, inputs: test_sce.oracle(inputs, select=float(row["select"]), q=float(row["q"])),
    ),
    "localize_and_stitch": (
        {"threshold": "tensor", "density": "search"},
        lambda row, inputs: test_localize_and_stitch.oracle(
            inputs, row["weights"], density=float(row["density"]), lambda_=1.0
        ),
    ),
    "consensus": (
        {"mask_threshold": "search"},
        lambda row, inputs: test_consensus.oracle(
            inputs,
            row["weights"],
            threshold=float(row["mask_threshold"]),
            agreement=2,
            lambda_=1.0,
        ),
    ),
    "magmax": (
        {"lambda_": "search"},
        lambda row, inputs: test_magmax.oracle(inputs, float(row["lambda_"])),
    ),
    "ram": (
        {"lambda_": "search"},
        lambda row, inputs: test_ram.oracle(inputs, epsilon=1e-5, lambda_=float(row["lambda_"])),
    ),
    "ram_plus": (
        {"r": "search", "epsilon": 0.01},
        lambda row, inputs: test_ram.oracle(
            inputs, epsilon=0.01, lambda_=1.0, r=float(row["r"]), alpha=0.2
        ),
    ),
    "nearswap": (
        {"compat": "mergekit", "t": [0.001, 0.1]},
        lambda row, inputs: test_nearswap.oracle(inputs.base, inputs.experts[0], float(row["t"])),
    ),
    "arcee_fusion": ({"multiplier": "search"}, fused),
}
PAIRS = ("nearswap", "arcee_fusion")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_searched_and_exported_is_its_formula(method, models, tmp_path):
    section, formula = METHODS[method]
    names = ("base", "x") if method in PAIRS else ("base", "x", "y")
    body = rp.config(
        models,
        [rp.text_task(tmp_path)],
        models=[str(models / name) for name in names[1:]],
        merge={"name": method, "groups": "layer", **section},
    )
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, method))
    base, *experts = (rp.tensors_of(models / name) for name in names)
    rows = formulas.rows_of(found.recipe, list(base))
    merged = {}
    for name in rp.tensors_of(found.folder):
        inputs = inputs_of(base[name], [expert[name] for expert in experts])
        merged[name] = torch.as_tensor(np.asarray(formula(rows[name], inputs))).float()
    rp.assert_same_model(found.folder, merged, models / "base", tmp_path)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_random_masks_are_the_same_when_the_recipe_is_merged_again(method, models, tmp_path):
    merge = {"name": method, "groups": "layer", "density": [0.2, 0.8], "epsilon": "search"}
    run, facts = rp.search(
        tmp_path / "work", rp.config(models, [rp.text_task(tmp_path)], merge=merge)
    )
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, method))
    again = rp.cli(
        "merge", found.folder / "recipe.json", "--out", tmp_path / "again", "--json"
    ).json
    assert again["weights_digest"] == found.row["weights_digest"]
    base, merged = rp.tensors_of(models / "base"), rp.tensors_of(found.folder)
    name = "model.layers.0.mlp.up_proj.weight"
    kept = float((merged[name] != base[name]).double().mean())
    density = float(formulas.rows_of(found.recipe, list(base))[name]["density"])
    if method == "della_linear":
        assert kept == pytest.approx(1.0 - (1.0 - density) ** 2, abs=0.08)
    else:
        assert 0.0 < kept < 1.0
