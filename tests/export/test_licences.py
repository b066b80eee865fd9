"""What parents' licences come to for a merge."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.export.licence_table import KINDS, PERMISSIVE_ORDER, SHARED_UNDER
from evomerge.export.licences import merged_licence, stated_licence


@pytest.mark.parametrize(
    ("stated", "id", "verdict"),
    [
        (("mit", "mit"), "mit", "ok"),
        (("mit", "apache-2.0"), "apache-2.0", "ok"),
        (("cc0-1.0", "bsd-3-clause", "isc"), "bsd-3-clause", "ok"),
        (("apache-2.0", "llama3.1"), "llama3.1", "ok"),
        (("gpl-3.0", "mit"), "gpl-3.0", "ok"),
        (("apache-2.0", "cc-by-nc-4.0"), "cc-by-nc-4.0", "warn"),
        (("llama3.1", "gemma"), None, "warn"),
        (("llama3", "cc-by-nc-4.0"), None, "warn"),
        (("gpl-3.0", "llama3"), None, "bad"),
        (("gpl-3.0", "gpl-3.0"), "gpl-3.0", "ok"),
        (("cc-by-sa-4.0", "cc-by-sa-4.0", "mit"), "cc-by-sa-4.0", "ok"),
        (("lgpl-3.0", "gpl-3.0"), "gpl-3.0", "ok"),
        (("gpl-3.0", "agpl-3.0", "lgpl-2.1"), "agpl-3.0", "ok"),
        (("cc-by-sa-3.0", "cc-by-sa-4.0"), "cc-by-sa-4.0", "ok"),
        (("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0", "warn"),
        (("gpl-2.0", "gpl-3.0"), None, "bad"),
        (("gpl-2.0", "agpl-3.0"), None, "bad"),
        (("gpl", "gpl-3.0"), None, "warn"),
        (("gpl-3.0", "cc-by-nc-4.0"), None, "bad"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), None, "bad"),
        (("mit", "cc-by-nc-nd-4.0"), None, "bad"),
        (("mit", None), None, "warn"),
        (("other", "other"), None, "warn"),
        (("our-own", "our-own"), "our-own", "warn"),
        (("our-own", "mit"), None, "warn"),
        ((None, None), None, "warn"),
    ],
)
def test_the_most_restrictive_known_licence_wins(stated, id, verdict):
    for order in (stated, stated[::-1]):
        found = merged_licence({f"m{i}": text for i, text in enumerate(order)})
        assert (found.id, found.verdict) == (id, verdict)
        assert "no legal advice" in found.sentence()


def test_a_finding_names_the_two_licences_and_says_why():
    found = merged_licence({"a": "gpl-2.0", "b": "gpl-3.0", "c": "mit"})
    assert "what is made of gpl-2.0 has to stay under it, which gpl-3.0 does not" in found.text
    found = merged_licence({"a": "lgpl-2.1", "b": "gpl-2.0", "c": "gemma"})
    assert "what is made of gpl-2.0 has to stay under it, which gemma does not" in found.text
    found = merged_licence({"a": "lgpl-3.0", "b": "gpl-3.0"})
    assert found.text.startswith("`gpl-3.0`, under which lgpl-3.0 may be shared (a: lgpl-3.0;")
    assert (
        "stay under it, which llama3 does" in merged_licence({"a": "llama3", "b": "mpl-2.0"}).text
    )


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=4))
@settings(deadline=None, max_examples=200)
def test_every_mixture_gets_one_finding_whatever_its_order(stated):
    found = [
        merged_licence({f"m{i}": text for i, text in enumerate(order)})
        for order in (stated, stated[::-1])
    ]
    assert found[0].id == found[1].id
    assert found[0].verdict == found[1].verdict
    assert (found[0].id is None) == (found[0].text.startswith(("none", "the terms")))


def test_the_table_of_compatible_licences_names_licences_that_are_known():
    for name, others in SHARED_UNDER.items():
        assert {KINDS[name], *(KINDS[other] for other in others)} <= {"copyleft", "non-commercial"}


def test_terms_that_apply_together_are_named_in_the_front_matter():
    found = merged_licence({"a": "llama3.1", "b": "gemma"})
    assert found.front() == {
        "license": "other",
        "license_name": "gemma-and-llama3.1",
        "license_link": "README.md",
    }
    assert merged_licence({"a": "gpl-3.0", "b": "gemma"}).front() == {}
    assert "no commercial use" in merged_licence({"a": "llama3", "b": "cc-by-nc-4.0"}).text


def test_every_permissive_licence_has_its_place():
    assert {name for name, kind in KINDS.items() if kind == "permissive"} == {*PERMISSIVE_ORDER}


@pytest.mark.parametrize(
    ("name", "text", "id"),
    [
        ("README.md", "---\nlicense: Apache-2.0\n---\n", "apache-2.0"),
        ("README.md", "---\nlicense: [mit]\n---\n", "mit"),
        ("README.md", "---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("README.md", "---\nlicense: other\nlicense_name: see our terms\n---\n", None),
        ("README.md", "---\nlicense: [mit\n---\n", None),
        ("README.md", "---\ndate: !!timestamp soon\nlicense: mit\n---\n", None),
        ("README.md", "no front matter", None),
        ("LICENSE", "  Apache License\n   Version 2.0, January 2004\n", "apache-2.0"),
        ("LICENSE", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        ("LICENSE.txt", "MIT License\n\nPermission is hereby granted, free of charge, to", "mit"),
        ("LICENSE", "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n", "gpl-3.0"),
        ("LICENSE", "Creative Commons Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("LICENSE", "All rights reserved.", None),
    ],
)
def test_a_licence_is_read_from_the_card_or_the_licence_file(tmp_path, name, text, id):
    (tmp_path / name).write_text(text)
    assert stated_licence(tmp_path) == id


def test_links_out_of_the_folder_state_nothing(tmp_path):
    (tmp_path / "secret").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "model" / "README.md")
    assert stated_licence(tmp_path / "model") is None
    assert stated_licence(tmp_path / "nowhere") is None
    assert stated_licence(None) is None
