"""Licences, chat templates, dtypes, tying and vocabularies of real small models."""

from __future__ import annotations

import json

import pytest
import torch

from evomerge.config.findings.papers import (
    chat_template_finding,
    dtype_finding,
    licence_findings,
    token_findings,
)
from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig
from tests.evaluation.tiny_models import FAMILIES, make, save

KIND = FAMILIES["llama"][:3]


@pytest.fixture
def folders(tmp_path):
    for seed, name in enumerate(("base", "x", "y")):
        save(make(*KIND, seed=seed), tmp_path / name)
    return tmp_path


def opened(folders):
    base, x, y = (ModelConfig(model=str(folders / n), name=n) for n in ("base", "x", "y"))
    return open_sources(base, [x, y])


def give_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def test_the_strictest_licence_is_the_merges(folders):
    for name, licence in (("base", "apache-2.0"), ("x", "mit"), ("y", "llama3.1")):
        (folders / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    finding, licence = licence_findings(opened(folders))
    assert (finding.mark, licence.id) == ("✓", "llama3.1")
    assert "no legal advice" in finding.text
    (folders / "y" / "README.md").unlink()
    finding, licence = licence_findings(opened(folders))
    assert (finding.mark, licence.id) == ("!", None)
    assert "y: not stated" in finding.text
    assert finding.remedy


def test_a_template_that_the_export_will_lack_is_pointed_out(folders):
    assert "no model has one" in chat_template_finding(opened(folders)).text
    give_template(folders / "x", "{{ messages }}")
    found = chat_template_finding(opened(folders))
    assert found.mark == "!"
    assert "'base', whose tokenizer an export ships, has none; 'x' has" in found.text
    give_template(folders / "base", "{{ messages }}")
    assert chat_template_finding(opened(folders)).mark == "✓"


def test_templates_are_compared_wherever_they_are_kept(folders):
    give_template(folders / "base", "{{ messages }}\n")
    path = folders / "x" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert chat_template_finding(opened(folders)).mark == "✓"
    path.write_text(json.dumps(settings | {"chat_template": [{"name": "a", "template": "b"}]}))
    found = chat_template_finding(opened(folders))
    assert (found.mark, "'x' has another one than 'base'" in found.text) == ("!", True)


def test_models_without_a_tokenizer_have_no_template(tiny_models):
    base, x = (ModelConfig(model=str(tiny_models.folder / n), name=n) for n in ("base", "x"))
    assert chat_template_finding(open_sources(base, [x])) is None


def test_mixed_dtypes_are_listed_with_the_merges(folders):
    assert dtype_finding(opened(folders)).text == "F32 in all models"
    save(make(*KIND, seed=1).to(torch.bfloat16), folders / "x")
    save(make(*KIND, seed=0).to(torch.float16), folders / "base")
    found = dtype_finding(opened(folders))
    assert found.mark == "!"
    assert "base F16; x BF16; y F32" in found.text
    assert "the merge is F16" in found.text
    assert "65,504" in found.text


def test_tying_and_vocabularies_that_differ_are_pointed_out(folders):
    (found,) = token_findings(opened(folders))
    assert (found.mark, found.topic) == ("✓", "vocabulary")
    tied = FAMILIES["llama-tied"][:3]
    save(make(*tied, seed=1), folders / "x")
    path = folders / "y" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["th"], words["the"] = words["the"], words["th"]
    path.write_text(json.dumps(tokenizer))
    found = {item.topic: item for item in token_findings(opened(folders))}
    assert "'x' ties its output head" in found["tying"].text
    assert "'y' has other token rows than 'base'" in found["vocabulary"].text
    assert all(item.mark == "!" for item in found.values())
