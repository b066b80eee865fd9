"""The page holds all it needs and nothing of a stranger's that could run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import metadata

import pytest

from evomerge.config.results import RunResults
from evomerge.errors import PreflightError
from evomerge.report import page
from evomerge.report.data import report_data
from evomerge.report.page import embedded_json, render
from tests.report.synthetic import HOSTILE, Plan, write_run


class Parsed(HTMLParser):
    """Elements with their attributes, the text of scripts, and the title."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.title, self._open = [], [], "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, text):
        if self._open == "script":
            self.scripts[-1] += text
        if self._open == "title":
            self.title += text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    plan = Plan(n=30, names=(HOSTILE, "b"), word=HOSTILE, experts=("a" + HOSTILE, "c"))
    run = write_run(tmp_path_factory.mktemp("hostile") / "run", plan)
    return report_data(RunResults(run))


def test_the_page_needs_nothing_from_elsewhere(data):
    parsed = Parsed(render(data))
    for tag, attributes in parsed.elements:
        if (tag, attributes.get("href")) == ("link", "data:,"):
            continue  # no icon, so that browsers do not ask for one
        assert not {"src", "srcset", "data"} & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "base", "img"), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
    style = page._asset("page.css")
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_exactly_the_scripts_of_the_page(data):
    text = render(data)
    parsed = Parsed(text)
    policy = next(a["content"] for t, a in parsed.elements if a.get("http-equiv"))
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in parsed.scripts[1:]
    ]
    assert allowed == set(digests)
    assert len(digests) == 2
    assert "'unsafe-eval'" not in policy
    assert "script-src 'sha256-" in policy
    assert "connect-src 'none'" in policy
    assert "default-src 'none'" in policy
    live = Parsed(render(data, live="data.json"))
    policy = next(a["content"] for t, a in live.elements if a.get("http-equiv"))
    assert "connect-src 'self'" in policy


def test_own_scripts_neither_evaluate_nor_parse_html():
    script = page._script()
    for word in ("eval(", "new Function", "innerHTML", "outerHTML", "insertAdjacentHTML",
                 "document.write", "srcdoc", "setTimeout(\""):  # fmt: skip
        assert word not in script, word


def test_strings_of_a_run_stay_strings(hostile):
    text = render(hostile)
    parsed = Parsed(text)
    assert len(parsed.scripts) == 3
    assert json.loads(parsed.scripts[0]) == json.loads(json.dumps(hostile))
    assert HOSTILE in json.loads(parsed.scripts[0])["objectives"][0]["name"]
    assert "<img" not in text.replace(page._plotly(), "")
    block = parsed.scripts[0]
    assert not set("<>&") & set(block)
    assert block.isascii()


def test_a_name_with_markup_is_escaped_in_the_title(data):
    text = render({**data, "run": '</title><script>alert(1)</script>"&'})
    parsed = Parsed(text)
    assert parsed.title.startswith('</title><script>alert(1)</script>"&')
    assert len(parsed.scripts) == 3


def test_json_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded_json({"value": float("nan")})
    assert json.loads(embedded_json(["</script>&<!--\u2028"])) == ["</script>&<!--\u2028"]


def test_every_control_and_every_plot_has_a_name(data):
    parsed = Parsed(render(data))
    for _, attributes in parsed.elements:
        if "plot" in attributes.get("class", "").split() or attributes.get("role") == "region":
            assert attributes.get("aria-label"), attributes
        if "scroll" in attributes.get("class", "").split():
            assert attributes.get("tabindex") == "0", "can be scrolled with the keyboard"
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', page._script()))
    assert {name for name in wanted if not name.startswith("tab-")} <= set(ids)


def test_a_missing_plotly_is_named(data, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(page.metadata, "files", missing)
    page._plotly.cache_clear()
    with pytest.raises(PreflightError, match=r"pip install 'evomerge\[report\]'"):
        render(data)
    page._plotly.cache_clear()


def test_the_licence_of_plotly_comes_with_it():
    head = page._plotly()[:300]
    assert "plotly.js" in head
    assert "MIT license" in head
