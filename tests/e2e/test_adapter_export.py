"""LoRA populations through the command line: adapters in, an adapter or a full model out."""

import importlib.util
import json

import pytest
import torch

from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder
from tests.e2e import real_project as rp
from tests.e2e.test_adapters_and_heads import save_adapter


def with_adapter(base, adapter):
    """Return the tensors of `base` with an adapter applied, float32."""
    source = LoraSource("again", adapter, ModelFolder("base", base))
    return {name: source.read(name).float() for name in rp.tensors_of(base)}


def assert_applied(base, adapter, full, tolerance=1e-5):
    expected = rp.tensors_of(full)
    for name, tensor in with_adapter(base, adapter).items():
        torch.testing.assert_close(
            tensor, expected[name].float(), rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.fixture
def project(tmp_path):
    base = rp.save(rp.llama(tie_word_embeddings=True), tmp_path / "base")
    for seed, name in enumerate(("x", "y")):
        save_adapter(tmp_path / name, base, seed=seed)
    return tmp_path


def searched(project, merge):
    body = rp.config(project, [rp.text_task(project)], merge=merge)
    run, facts = rp.search(project / "work", body)
    return run, facts, rp.searched_candidate(run, merge["name"])


@pytest.mark.parametrize(
    "merge",
    [
        {"name": "task_arithmetic", "groups": "layer"},
        {"name": "evo_merging"},
        {"name": "evo_merging", "coupling": "both", "alpha": 1.0},
    ],
)
def test_a_population_of_adapters_gives_an_adapter(merge, project):
    run, facts, pick = searched(project, merge)
    full = rp.export(project / "work", run, facts, pick)
    out = project / "adapter"
    said = rp.cli("export", run, "--pick", pick, "--out", out, "--adapter", "--json").json[0]
    assert said["weights_digest"] == full.row["weights_digest"]
    assert said["adapter"]["relative_error"] == 0.0
    assert said["adapter"]["rank"] == (2 if merge.get("coupling") == "both" else 4)
    assert len(said["adapter"]["errors"]) == 6
    assert_applied(project / "base", out, full.folder)
    card = (out / "README.md").read_text()
    assert "It is the merge exactly" in card
    assert "bit for bit what was scored" in card


def test_an_adapter_is_a_model_of_the_next_merge(project):
    run, facts, pick = searched(project, {"name": "task_arithmetic"})
    rp.cli("export", run, "--pick", pick, "--out", project / "z", "--adapter")
    recipe = project / "again.yaml"
    recipe.write_text(
        json.dumps(
            {
                "merge_method": "task_arithmetic",
                "base_model": str(project / "base"),
                "models": [
                    {"model": f"{project / 'base'}+{project / 'z'}", "parameters": {"weight": 1.0}}
                ],
                "dtype": "float32",
            }
        )
    )
    rp.cli("merge", recipe, "--out", project / "full")
    full = rp.export(project / "work", run, facts, pick)
    expected = rp.tensors_of(full.folder)
    for name, tensor in rp.tensors_of(project / "full").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_full_merge_is_cut_to_a_rank_and_says_how_far_it_is(project):
    run, _, pick = searched(project, {"name": "ties"})
    said = rp.cli("export", run, "--pick", pick, "--out", project / "out", "--adapter", expect=2)
    assert "--rank R" in said.err
    errors = []
    for rank in (2, 16):
        out = project / f"rank-{rank}"
        text = rp.cli("export", run, "--pick", pick, "--out", out, "--adapter", "--rank", rank).out
        record = json.loads((out / "recipe.json").read_text())
        errors.append(record["adapter"]["relative_error"])
        assert f"rank {rank}, relative error {errors[-1]:.3g}" in text
        assert text.rstrip().endswith("; the figures above are of the full merge")
    assert errors[0] > 0.05
    assert errors[1] < 1e-5
    again = rp.cli(
        "merge", project / "rank-16" / "recipe.json", "--out", project / "full", "--json"
    ).json
    assert "adapter" not in again
    assert again["weights_digest"] == record["weights_digest"]
    assert_applied(project / "base", project / "rank-16", project / "full")
    said = rp.cli(
        "merge", project / "full" / "recipe.json", "--out", project / "cut", "--adapter",
        "--rank", 2, "--json",
    ).json  # fmt: skip
    assert said["adapter"]["relative_error"] == errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", 4), "give --adapter too"),
        (("--adapter", "--rank", 0), "--rank is 0"),
        (("--adapter", "--verify"), "leave it out with --adapter"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message, project):
    run, _, pick = searched(project, {"name": "task_arithmetic"})
    out = project / "out"
    assert message in rp.cli("export", run, "--pick", pick, "--out", out, *options, expect=2).err
    assert not out.exists()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_was_exported(project):
    import peft
    import transformers

    run, facts, pick = searched(project, {"name": "task_arithmetic", "groups": "layer"})
    full = rp.export(project / "work", run, facts, pick)
    rp.cli("export", run, "--pick", pick, "--out", project / "adapter", "--adapter")
    plain = transformers.AutoModelForCausalLM.from_pretrained(project / "base")
    adapted = peft.PeftModel.from_pretrained(plain, project / "adapter").eval()
    with torch.inference_mode():
        got = adapted(**rp.batch_for(rp.CAUSAL)).logits
    torch.testing.assert_close(got, rp.logits_of(full.folder), rtol=1e-4, atol=1e-4)
