"""What the screen looks like: drawn by a browser, with everything inside its frame."""

import os
from pathlib import Path

import pytest

from tests.report.browser import chromium
from tests.watch.picture import png_of, svg_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_nothing_is_cut_off(size, runs, tmp_path):
    place = os.environ.get("EVOMERGE_ARTEFACTS")
    svg = svg_of([runs], size, ["down"])
    with chromium() as browser:
        picture = png_of(svg, browser, tmp_path, width=12 * size[0] + 40)
        page = browser.new_page()
        page.set_content(f"<body>{svg}</body>")
        outside = page.evaluate("""() => {
            const frame = document.querySelector("svg").viewBox.baseVal;
            return [...document.querySelectorAll("svg text")]
                .filter((text) => { const box = text.getBBox();  // a glyph may hang over a little
                    return box.x < -6 || box.x + box.width > frame.width + 6; })
                .map((text) => text.textContent);
        }""")
    assert outside == []
    assert picture.startswith(b"\x89PNG")
    for words in ("per minute", "evaluations/min", "examples/s", "Drain", "hypervolume"):
        assert words in svg.replace("&#160;", " ")
    folder = Path(place) if place else tmp_path
    folder.joinpath(f"watch-{size[0]}x{size[1]}.png").write_bytes(picture)
