"""Exported folders load in transformers and hold exactly the merged tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from evomerge.core.model_space import ModelSpace, align
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError, PreflightError, RunError, SourceError
from evomerge.export import (
    CardFacts,
    ExportResult,
    LineageStep,
    ParentModel,
    ScoreRow,
    export_candidate,
    verify_digest,
)
from evomerge.merging.materialize import materialize
from evomerge.merging.weights_digest import WeightsDigest
from evomerge.storage.model_folder import ModelFolder

IDS = torch.tensor([[1, 5, 2, 9, 3]])


def save_llama(folder: Path, seed: int, *, tied: bool = False, dtype: str = "float32") -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    words = {f"w{i}": i for i in range(15)} | {"[UNK]": 15}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)


class Merge:
    """Folders opened and aligned, with a linear recipe over them."""

    def __init__(self, *folders: Path, recipe: Recipe | None = None) -> None:
        self.sources = {path.name: ModelFolder(path.name, path) for path in folders}
        self.space: ModelSpace = align([s.header() for s in self.sources.values()], has_base=False)
        share = np.full((1, len(folders)), 1.0 / len(folders))
        self.recipe = recipe or Recipe("linear", self.space.sources, {"weights": share})
        self.donor = folders[0]
        self.parents = tuple(
            ParentModel(id=path.name, model=str(path), path=path, digest="d" * 32)
            for path in folders
        )

    def export(self, out: Path, **changes: object) -> ExportResult:
        card = changes.pop("card", None) or CardFacts(title="A merge", parents=self.parents)
        keywords = {
            "recipe": self.recipe,
            "space": self.space,
            "sources": self.sources,
            "derived": None,
            "donor": self.donor,
            "card": card,
            **changes,
        }
        return export_candidate(out, **keywords)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        return dict(materialize(self.recipe, self.space, self.sources, out_dtype=dtype))


@pytest.fixture
def llamas(tmp_path: Path) -> Merge:
    folders = [save_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    save_tokenizer(folders[0])
    return Merge(*folders)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name]


def front_matter(folder: Path) -> dict[str, object]:
    text = (folder / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])


# --- loading back -------------------------------------------------------------------------


def test_an_exported_llama_gives_the_logits_of_the_merged_tensors(llamas, tmp_path):
    result = llamas.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = LlamaForCausalLM(AutoConfig.from_pretrained(llamas.donor)).eval()
    expected.load_state_dict(llamas.tensors())
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, expected(IDS).logits, rtol=0, atol=0)
    for name, tensor in llamas.tensors().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert result.folder == tmp_path / "out"
    assert leftovers(tmp_path) == []


def test_an_exported_vit_gives_the_logits_of_the_merged_tensors(tmp_path):
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = ViTConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
        folders.append(tmp_path / f"vit{seed}")
        ViTForImageClassification(config).save_pretrained(folders[-1])
    (folders[0] / "preprocessor_config.json").write_text('{"size": 8}')
    merge = Merge(*folders)
    merge.export(tmp_path / "out")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    files = load_file(tmp_path / "out" / "model.safetensors")
    merged = merge.tensors()
    assert set(files) == set(merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(files[name], tensor, rtol=0, atol=0)
    # The same tensors through the donor's folder: names in files are not those in memory.
    donor = tmp_path / "by-hand"
    donor.mkdir()
    (donor / "config.json").write_bytes((folders[0] / "config.json").read_bytes())
    from safetensors.torch import save_file

    save_file(
        {name: t.contiguous() for name, t in merged.items()},
        donor / "model.safetensors",
        {"format": "pt"},
    )
    expected = AutoModelForImageClassification.from_pretrained(donor).eval()
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, expected(pixels).logits, rtol=0, atol=0)
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == {"size": 8}


def test_shards_are_written_with_an_index(llamas, tmp_path):
    result = llamas.export(tmp_path / "out", max_shard_bytes=1000)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(loaded.state_dict()[name], llamas.tensors()[name], rtol=0, atol=0)
    assert verify_digest(tmp_path / "out") == result.weights_digest


def test_the_tokenizer_comes_along(llamas, tmp_path):
    llamas.export(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w3 w7")["input_ids"] == [3, 7]
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_dtype_is_applied_to_weights_and_config(llamas, tmp_path):
    result = llamas.export(tmp_path / "out", dtype="bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config
    expected = WeightsDigest()
    for name, tensor in llamas.tensors(torch.bfloat16).items():
        expected.add(name, tensor)
    assert result.weights_digest == expected.hexdigest() == verify_digest(tmp_path / "out")


# --- tied embeddings ----------------------------------------------------------------------


def test_embeddings_that_all_parents_tie_stay_tied(tmp_path):
    merge = Merge(*(save_llama(tmp_path / f"t{i}", i, tied=True) for i in range(2)))
    merge.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    expected = merge.tensors()["model.embed_tokens.weight"]
    torch.testing.assert_close(loaded.lm_head.weight.data, expected, rtol=0, atol=0)


def test_a_parent_with_its_own_head_unties_the_export(tmp_path):
    tied = save_llama(tmp_path / "tied", 0, tied=True)
    merge = Merge(tied, save_llama(tmp_path / "untied", 1))
    assert merge.space.untied
    merge.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not loaded.config.tie_word_embeddings
    merged = merge.tensors()
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    torch.testing.assert_close(loaded.lm_head.weight.data, merged["lm_head.weight"], rtol=0, atol=0)
    assert "stored apart from the embeddings" in (tmp_path / "out" / "README.md").read_text()


# --- only safe files ----------------------------------------------------------------------


def test_code_and_pickles_are_not_copied(llamas, tmp_path):
    donor = llamas.donor
    (donor / "modeling_own.py").write_text("print('run')")
    (donor / "training_args.bin").write_bytes(b"pickle")
    config = json.loads((donor / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling_own.Own"}, "_name_or_path": "/home/me/secret"}
    (donor / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((donor / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    (donor / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    llamas.export(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {name for name in names if name.endswith((".py", ".bin"))}
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in (tmp_path / "out" / name).read_text()
    assert "secret" not in (tmp_path / "out" / "config.json").read_text()
    assert "was not copied" in (tmp_path / "out" / "README.md").read_text()
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_a_tokenizer_linked_from_elsewhere_is_refused_before_the_merge(llamas, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (llamas.donor / "added_tokens.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(SourceError, match="outside the model folder"):
        llamas.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bare_weights_file_as_donor_gives_weights_and_papers(llamas, tmp_path):
    llamas.donor = llamas.donor / "model.safetensors"
    result = llamas.export(tmp_path / "out")
    assert {path.name for path in result.folder.iterdir()} == {
        "model.safetensors",
        "recipe.json",
        "manifest.json",
        "README.md",
        "mergekit_config.yml",
    }
    assert verify_digest(result.folder) == result.weights_digest


# --- all or nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_already_is_left_alone(llamas, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        (tmp_path / "empty").mkdir()
        out.symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match="already exists"):
        llamas.export(out)
    if kind == "folder":
        assert (out / "notes.txt").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_filled(llamas, tmp_path):
    (tmp_path / "deep" / "out").mkdir(parents=True)
    llamas.export(tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "config.json").is_file()


@pytest.mark.parametrize("had_folder", [False, True])
def test_a_failure_half_way_leaves_nothing(llamas, tmp_path, had_folder):
    class Breaks(ModelFolder):
        def read(self, name):
            if "layers.1" in name:
                raise EvaluationError("broken here")
            return super().read(name)

    out = tmp_path / "out"
    if had_folder:
        out.mkdir()
    two = llamas.sources["two"]
    with pytest.raises(EvaluationError, match="broken here"):
        llamas.export(out, sources={**llamas.sources, "two": Breaks("two", two.path)})
    assert out.exists() == had_folder
    assert not had_folder or list(out.iterdir()) == []
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_noticed_before_the_merge(llamas, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(PreflightError, match=r"0\.0 GB are free"):
        llamas.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_run_error(llamas, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        llamas.export(tmp_path / "file" / "out")


def test_an_export_that_is_killed_leaves_no_folder_under_the_final_name(llamas, tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
import evomerge.export.writer as writer
from tests.test_export import Merge
writer._write_papers = lambda *a: os._exit(9)
Merge(Path({str(llamas.donor)!r}), Path({str(tmp_path / "two")!r})).export(Path({str(tmp_path / "out")!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()
    assert len(leftovers(tmp_path)) == 1
    llamas.export(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_unknown_dtypes_and_parents_are_refused(llamas, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        llamas.export(tmp_path / "out", dtype="bflot16")
    with pytest.raises(ValueError, match="lack 'two'"):
        llamas.export(tmp_path / "out", card=CardFacts(title="x", parents=llamas.parents[:1]))


# --- papers -------------------------------------------------------------------------------


def test_recipe_json_holds_what_a_merge_needs(llamas, tmp_path):
    result = llamas.export(tmp_path / "out")
    body = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert Recipe.from_json(body["recipe"]).digest() == llamas.recipe.digest()
    assert body["weights_digest"] == result.weights_digest
    assert [source["id"] for source in body["sources"]] == ["one", "two"]
    assert body["sources"][0]["digest"] == llamas.sources["one"].digest
    assert body["dtype"] is None
    assert body["donor"] == "one"
    assert body["has_base"] is False


def test_a_recipe_of_some_sources_names_all_in_recipe_json_and_its_own_on_the_card(
    llamas, tmp_path
):
    merge = Merge(
        *(source.path for source in llamas.sources.values()), save_llama(tmp_path / "three", 3)
    )
    merge.recipe = Recipe("linear", ("one", "three"), {"weights": np.array([[0.5, 0.5]])})
    merge.export(tmp_path / "out", dtype="float16")
    body = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert [source["id"] for source in body["sources"]] == ["one", "two", "three"]
    assert body["dtype"] == "float16"
    assert front_matter(tmp_path / "out")["base_model"] == ["one", "three"]


def test_the_mergekit_config_is_written_when_there_is_one(llamas, tmp_path):
    result = llamas.export(tmp_path / "out")
    body = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert body["merge_method"] == "linear"
    assert [model["model"] for model in body["models"]] == [
        str(tmp_path / "one"),
        str(tmp_path / "two"),
    ]
    assert result.no_mergekit_reason == ""


def test_a_recipe_mergekit_cannot_say_is_exported_with_the_reason(llamas, tmp_path):
    breaks = np.array([0, 7, llamas.space.n_elements])
    params = {"weights": np.array([[1.0, 0.0], [0.25, 0.75]])}
    llamas.recipe = Recipe("linear", llamas.space.sources, params, "segments", breaks)
    result = llamas.export(tmp_path / "out")
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()
    assert "split points" in result.no_mergekit_reason
    assert "split points" in (tmp_path / "out" / "README.md").read_text()
    assert verify_digest(tmp_path / "out") == result.weights_digest


def test_the_card_says_what_was_searched(llamas, tmp_path):
    card = CardFacts(
        title="Two | one",
        parents=(
            ParentModel(id="one", model="org/one", path=llamas.donor, revision="abc"),
            ParentModel(
                id="two",
                model="/hub/models--org--two/snapshots/0123",
                path=tmp_path / "two",
                lora="org/lora",
                lora_path=tmp_path / "two",
            ),
        ),
        scores=(
            ScoreRow(
                name="math|easy",
                search=0.75,
                n_search=200,
                held_out=0.7,
                n_held_out=400,
                held_out_interval=(0.65, 0.75),
            ),
            ScoreRow(name="japanese", search=0.5, n_search=100),
        ),
        candidate_id=31,
        lineage=(LineageStep(31, (4, 9), "crossover"), LineageStep(4, (), "founder: mean")),
        n_candidates=400,
        algorithm="m2n2",
        seed=7,
        run="ja-math",
        notes=("Made on a laptop.",),
    )
    for name in ("one", "two"):
        (tmp_path / name / "README.md").write_text("---\nlicense: Apache-2.0\n---\n# Model\n")
    llamas.export(tmp_path / "out", card=card)
    front = front_matter(tmp_path / "out")
    assert front == {
        "base_model": ["org/one", "org/two", "org/lora"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mergekit", "evomerge"],
        "license": "apache-2.0",
    }
    mergekit = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    named = [model["model"] for model in mergekit["models"]]
    assert named == ["org/one@abc", "org/two@0123+org/lora"]
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "| math\\|easy | 0.7500 | 200 | 0.7000 [0.6500, 0.7500] | 400 |",
        "| japanese | 0.5000 | 100 | not measured | – |",
        "picked out of 400 candidates",
        "Candidate 31 of run `ja-math`, algorithm `m2n2`, seed 7, 400 candidates scored",
        "- 31 from 4, 9 (crossover)",
        "- 4 from the sources (founder: mean)",
        "| weights | two | 0.5 | 0.5 | 0.5 |",
        "evomerge merge recipe.json --out OUT",
        "mergekit-yaml mergekit_config.yml OUT",
        "org/one @ abc",
        "- Made on a laptop.",
    ):
        assert part in text
    assert "operator: linear" in text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("license: mit", "tags: [x]"),
        ("license: other", "license: other"),
        ("license: mit", None),
        ("license: mit", "license: [mit"),
        ("license: mit", "license: {a: b}"),
    ],
)
def test_licences_that_are_not_known_are_left_out_and_named(llamas, tmp_path, first, second):
    (tmp_path / "one" / "README.md").write_text(f"---\n{first}\n---\n")
    if second is not None:
        (tmp_path / "two" / "README.md").write_text(f"---\n{second}\n---\n")
    llamas.export(tmp_path / "out")
    assert "license" not in front_matter(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Licence: none can be stated, for no" in text
    assert "(one: " in text
    assert "no legal advice" in text


def test_local_parents_are_named_without_their_folder(llamas, tmp_path):
    llamas.export(tmp_path / "out")
    assert front_matter(tmp_path / "out")["base_model"] == ["one", "two"]
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("same", "text"), [(True, "bit for bit"), (False, "another dtype")])
def test_the_card_says_whether_the_weights_are_those_that_were_scored(llamas, tmp_path, same, text):
    digest = WeightsDigest()
    for name, tensor in llamas.tensors().items():
        digest.add(name, tensor)
    scored = digest.hexdigest() if same else "0" * 32
    card = CardFacts(title="x", parents=llamas.parents, scored_digest=scored)
    result = llamas.export(tmp_path / "out", card=card)
    assert (result.weights_digest == scored) == same
    assert text in (tmp_path / "out" / "README.md").read_text()


def test_verify_notices_a_changed_byte(llamas, tmp_path):
    result = llamas.export(tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert verify_digest(tmp_path / "out") != result.weights_digest
