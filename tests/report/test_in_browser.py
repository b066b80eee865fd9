"""Reports in a real browser: nothing complains, plots are drawn, keys, clicks and themes work."""

import json

import pytest

from evomerge.config.results import RunResults
from evomerge.report.data import report_data
from evomerge.report.page import render
from evomerge.storage.run_store import RunStore
from tests.report.browser import chromium, opened
from tests.report.synthetic import HOSTILE, Plan, append, write_run
from tests.report.test_live import serving

pytestmark = pytest.mark.slow

TABS = ["overview", "front", "history", "niches", "lineage", "coefficients", "failures",
        "environment"]  # fmt: skip

TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def page_of(folder, plan):
    run = write_run(folder / "run", plan)
    path = folder / "report.html"
    path.write_text(render(report_data(RunResults(run))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("report"), Plan(n=120))


@pytest.fixture(scope="module")
def big_report(tmp_path_factory):
    plan = Plan(n=10_000, examples=250, layers=32, experts=("a", "b", "c", "d"))
    return page_of(tmp_path_factory.mktemp("big"), plan)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_part_is_drawn_without_complaints_and_fits(report, browser, width, height, scheme):
    with opened(browser, report, width=width, height=height, scheme=scheme) as seen:
        ids = [tab.get_attribute("aria-controls") for tab in seen.page.locator("[role=tab]").all()]
        assert ids == TABS, "no validation figures, no tab for them"
        for name in TABS:
            seen.tab(name)
            assert seen.page.locator(f"#{name}").is_visible()
            assert not seen.page.evaluate(TOO_WIDE), f"{name} is wider than the screen"
            for plot in seen.page.locator(f"#{name} .plot:not([hidden])").all():
                plot.locator(".main-svg").first.wait_for()
        assert seen.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_validation_scores_have_intervals_and_gains_on_the_best_parent(tmp_path, browser, width):
    run = write_run(tmp_path / "run", Plan(n=40))
    names = RunResults(run).objectives.names
    values = {i: {name: 0.4 + i / 100 for name in names} for i in (0, 3, 7)}
    gain = {"over": 0, "gain": 0.07, "interval": [-0.02, 0.16], "p": 0.043}
    body = {
        "n": dict.fromkeys(names, 50),
        "candidates": values,
        "shrunken": values,
        "intervals": {
            i: {n: [v - 0.1, v + 0.1] for n, v in row.items()} for i, row in values.items()
        },
        "gains": {0: {}, 3: {}, 7: dict.fromkeys(names, gain)},
    }
    (run.path / "validation.json").write_text(json.dumps(body))
    path = tmp_path / "report.html"
    path.write_text(render(report_data(RunResults(run))), encoding="utf-8")
    with opened(browser, path, width=width) as seen:
        seen.tab("validation")
        row = seen.page.locator("#validation-table tbody tr").last.inner_text()
        for part in ("0.470 [0.370, 0.570]", "+0.070 [−0.020, +0.160] (candidate 0)", "0.043"):
            assert part in row
        assert "n = " in seen.text("#validation-note")
        assert not seen.page.evaluate(TOO_WIDE)
        assert seen.complaints == []


def test_the_front_is_drawn_and_a_click_shows_the_candidate(report, browser):
    with opened(browser, report) as seen:
        seen.tab("front")
        drawn = seen.page.evaluate("""() => document.getElementById("front-plot").data
            .filter((t) => t.name === "front")[0].x.length""")
        n_members = seen.page.locator("#members tbody tr").count()
        assert drawn == n_members > 3
        points = seen.page.locator("#front-plot .scatterlayer .trace .points path")
        assert points.count() >= 100
        # A front point, by the place where it is on the screen.
        x, y, wanted = seen.page.evaluate("""() => {
            const plot = document.getElementById("front-plot");
            const trace = plot.data.filter((t) => t.name === "front")[0];
            const box = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.d2p(trace.x[2]),
                    box.top + yaxis._offset + yaxis.d2p(trace.y[2]), trace.customdata[2]];
        }""")
        seen.page.mouse.move(x, y)
        seen.page.mouse.click(x, y)
        seen.page.locator(f"#details-title:has-text('Candidate {wanted}')").wait_for()
        details = seen.text("#details")
        assert f"--pick candidate:{wanted} --out merged-{wanted}" in details
        assert "weights: maths-7b" in details
        seen.page.locator("#details-body button.link").first.click()  # to a parent
        assert seen.text("#details-title") != f"Candidate {wanted}"
        assert seen.complaints == []


def drag_over_axis(page, axis, start, end):
    """Drag a box over an axis of the parallel coordinates, from one height to another (0 to 1)."""
    left, top, bottom, right = page.evaluate(
        """([k, start, end]) => {
            const plot = document.getElementById("parallel-plot");
            plot.scrollIntoView({ block: "center" });
            const box = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            const x = (value) => box.left + xaxis._offset + xaxis.d2p(value);
            const y = (value) => box.top + yaxis._offset + yaxis.d2p(value);
            return [x(k - 0.15), y(start), y(end), x(k + 0.15)];
        }""",
        [axis, start, end],
    )
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move((left + right) / 2, (top + bottom) / 2)
    page.mouse.move(right, bottom)
    page.mouse.up()


def test_brushes_keep_the_members_within_ranges_everywhere(report, browser):
    with opened(browser, report) as seen:
        seen.tab("front")
        members = seen.page.locator("#members tbody tr")
        total = members.count()
        values = [float(text) for text in members.locator("td:nth-child(2)").all_inner_texts()]
        drag_over_axis(seen.page, 0, 0.5, 1.05)
        seen.page.locator("#brush-state:has-text('members kept')").wait_for()
        middle = (min(values) + max(values)) / 2
        kept = [value for value in values if value >= middle]
        assert 0 < len(kept) < total
        assert members.count() == len(kept)
        assert seen.text("#brush-state").startswith(f"{len(kept)} of {total} members kept: maths ≥")
        opacity = """() => document.getElementById("front-plot").data
            .filter((t) => t.name === "front")[0].marker.opacity"""
        assert seen.page.evaluate(opacity).count(1) == len(kept)
        shapes = "document.getElementById('parallel-plot').layout.shapes.length"
        assert seen.page.evaluate(shapes) == 1
        drag_over_axis(seen.page, 1, -0.05, 0.3)  # a second brush narrows the first
        seen.page.locator("#brush-state:has-text('; chat ≤')").wait_for()
        assert members.count() <= len(kept)
        seen.page.locator("#brush-clear").click()
        assert members.count() == total
        assert seen.page.evaluate(shapes) == 0
        assert seen.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_brushes_can_be_typed(report, browser, width):
    with opened(browser, report, width=width) as seen:
        seen.tab("front")
        members = seen.page.locator("#members tbody tr")
        total = members.count()
        values = [float(text) for text in members.locator("td:nth-child(3)").all_inner_texts()]
        middle = sorted(values)[total // 2]
        seen.page.locator("#brush-axis").select_option("chat")
        seen.page.locator("#brush-high").fill(str(middle))
        seen.page.keyboard.press("Tab")
        assert members.count() == sum(value <= middle for value in values) < total
        seen.page.locator("#members tbody button").first.click()
        assert "members kept" in seen.text("#brush-state"), "a choice keeps the brush"
        seen.page.locator("#brush-high").fill("")
        seen.page.keyboard.press("Tab")
        assert members.count() == total
        assert not seen.page.evaluate(TOO_WIDE)
        assert seen.complaints == []


def test_no_button_offers_to_upload_the_run(report, browser):
    with opened(browser, report) as seen:
        for name in TABS:
            seen.tab(name)
        titles = """[...document.querySelectorAll(".modebar-btn")].map((b) => b.dataset.title)"""
        assert not [text for text in seen.page.evaluate(titles) if "hare" in text or "loud" in text]


def test_everything_can_be_done_with_the_keyboard(report, browser):
    with opened(browser, report) as seen:
        focused = "document.activeElement.id || document.activeElement.textContent"
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.className") == "skip"
        seen.page.locator("#tab-overview").focus()
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.evaluate(focused) == "tab-front"
        assert seen.page.locator("#front").is_visible()
        seen.page.keyboard.press("End")
        assert seen.page.evaluate(focused) == "tab-environment"
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.evaluate(focused) == "tab-overview"
        seen.page.keyboard.press("ArrowRight")
        for _ in range(60):  # every member is reachable through the table
            seen.page.keyboard.press("Tab")
            if seen.page.evaluate("document.activeElement.matches('#members tbody button')"):
                break
        wanted = seen.page.evaluate("document.activeElement.textContent")
        seen.page.keyboard.press("Enter")
        assert seen.text("#details-title") == f"Candidate {wanted}"
        assert seen.page.evaluate("document.activeElement.textContent") == wanted, "focus stays"
        assert seen.page.locator(f"#members tr.chosen[data-id='{wanted}']").count() == 1
        sort = seen.page.locator("#members th button").nth(0)
        sort.focus()
        seen.page.keyboard.press("Enter")
        assert seen.page.locator("#members th").nth(0).get_attribute("aria-sort") == "descending"
        assert seen.complaints == []


def test_dark_mode_follows_the_system_and_the_button(report, browser):
    background = "getComputedStyle(document.body).backgroundColor"
    grid = "document.getElementById('front-plot').layout.xaxis.gridcolor"
    with opened(browser, report, scheme="dark") as seen:
        seen.tab("front")
        dark, dark_grid = seen.page.evaluate(background), seen.page.evaluate(grid)
        seen.page.locator("#theme").click()
        light, light_grid = seen.page.evaluate(background), seen.page.evaluate(grid)
        assert (light, light_grid) != (dark, dark_grid)
        assert light == "rgb(255, 255, 255)"
        seen.page.locator("#theme").click()
        assert (seen.page.evaluate(background), seen.page.evaluate(grid)) == (dark, dark_grid)
        assert seen.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barriers(report, browser, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe is a script of its own: the page's policy has to let it in.
    with opened(browser, report, width=390, scheme=scheme, bypass_csp=True) as seen:
        for name in TABS:
            seen.tab(name)
            if name == "front":
                seen.page.locator("#members tbody button").nth(1).click()
            found = axe.run(seen.page)
            assert found.violations_count == 0, found.generate_report()


def test_ten_thousand_candidates_stay_responsive(big_report, browser):
    assert big_report.stat().st_size < 12e6
    with opened(browser, big_report) as seen:
        # Longest time the page does not answer, over opening every part and choosing candidates.
        seen.page.evaluate("""() => {
            window.longest = 0;
            new PerformanceObserver((list) => {
                for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
            }).observe({ type: "longtask", buffered: false });
        }""")
        for name in TABS:
            seen.tab(name)
        seen.tab("front")
        for row in (0, 3, 9):
            seen.page.locator("#members tbody button").nth(row).click()
        seen.page.wait_for_timeout(100)
        shapes = seen.page.locator("#front-plot .points path").count()
        assert 1000 < shapes < 2500, "the front, and a sample of the rest"
        assert "not drawn" in seen.text("#front-note")
        longest = seen.page.evaluate("window.longest")
        print(f"longest task {longest:.0f} ms")
        assert seen.complaints == []


def test_a_run_of_a_stranger_injects_nothing(tmp_path, browser):
    plan = Plan(names=(HOSTILE, "x" + HOSTILE), word=HOSTILE, experts=("a" + HOSTILE, "b"))
    with opened(browser, page_of(tmp_path, plan), width=390) as seen:
        for name in TABS:
            seen.tab(name)
            assert not seen.page.evaluate(TOO_WIDE), name
            for select in seen.page.locator(f"#{name} select").all():
                options = select.locator("option").count()
                select.select_option(index=options - 1)
        seen.tab("front")
        seen.page.locator("#members tbody button").nth(1).click()
        assert "<img src=x" in seen.text("#details"), "shown as text"
        assert seen.page.evaluate("window.hacked") is None
        assert seen.page.locator("img, a:not(.skip):not(.modebar-btn)").count() == 0
        links = """[...document.querySelectorAll("*")].filter((e) => e.getAttribute("href")
            || e.getAttributeNS("http://www.w3.org/1999/xlink", "href"))
            .filter((e) => e.className !== "skip" && !["image", "LINK"].includes(e.tagName)).map((e) => e.outerHTML)"""
        assert seen.page.evaluate(links) == []
        assert seen.complaints == []
        # What gets in all the same is not run: the policy names the page's own scripts.
        seen.page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 4";
            document.body.append(script);
        }""")
        assert seen.page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in line for line in seen.complaints)


@pytest.mark.parametrize("names", [("only",), ("a", "b", "c", "d", "e")])
def test_one_objective_and_many(names, tmp_path, browser):
    with opened(browser, page_of(tmp_path, Plan(names=names, n=40))) as seen:
        for name in TABS:
            seen.tab(name)
        seen.tab("front")
        axes = [seen.page.locator(f"#front-{way}").input_value() for way in "xy"]
        assert axes == (["number", "0"] if len(names) == 1 else ["0", "1"])
        seen.page.locator("#front-x").select_option("number")
        assert "candidate number" in seen.page.locator("#front-plot .xtitle").text_content()
        assert seen.complaints == []


def test_a_live_page_follows_the_run(tmp_path, browser):
    plan = Plan(n=30)
    folder = write_run(tmp_path / "run", plan)
    header = folder.header()
    store = RunStore(folder, header=header, tasks=header["tasks"])
    with serving(folder) as address, opened(browser, address.geturl()) as seen:
        seen.page.locator("#live:has-text('follows the run')").wait_for()
        seen.tab("front")
        seen.page.locator("#members tbody button").first.click()
        chosen = seen.text("#details-title")
        append(store, plan, range(30, 60))
        seen.tab("overview")
        seen.page.locator("#facts:has-text('60 of 30 candidates')").wait_for()
        seen.tab("front")
        assert seen.text("#details-title") == chosen, "the choice stays"
        ids = seen.page.evaluate(
            "document.getElementById('front-plot').data.flatMap((t) => t.customdata || [])"
        )
        assert max(ids) >= 30
        assert seen.complaints == []
    store.close()
