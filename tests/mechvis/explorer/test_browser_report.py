"""Ordinary reports and the dashboard of latents in a real browser: they show what they hold, on any screen."""

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from mechvis.report import Figure, Images, Section, Table, write_report


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    drawn = MatplotlibFigure(figsize=(3, 2))
    drawn.add_subplot().bar(["a", "b"], [1, 2])
    table = pl.DataFrame({"unit": ["a", "b", "c"], "effect": [0.5, -1.0, 0.25]})
    sections = [
        Section("Found", [Table(table, "Effects", bars=("effect",)), Figure(drawn, "Bars")]),
        Section("Pictures", [Images([np.zeros((8, 8, 3), np.uint8)], ["black"]), Figure(drawn, "Pixels", raster=True)]),
    ]
    return write_report(
        tmp_path_factory.mktemp("report") / "r.html", "A report", "of a test", sections, {"command": "x"}
    )


def test_figures_bars_and_tables_of_a_report(watch, report_file):
    page = watch.open(report_file, wait="footer")
    widths = page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 0, "the style sheet's hash does not keep figures from being drawn"
    bars = page.locator("td.bar svg rect").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert bars[1] > bars[0] > bars[2] > 0 and abs(bars[1] / bars[0] - 2) < 0.05
    colours = page.locator("td.bar svg").evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
    assert colours[0] == colours[2] != colours[1], "negative effects have another colour"
    page.locator("th button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("tbody td:first-child").all_inner_texts() == ["a", "c", "b"]
    page.keyboard.press("Enter")
    assert page.locator("tbody td:first-child").all_inner_texts() == ["b", "c", "a"]
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    watch.quiet(report_file)


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_sticks_out_of_the_window(browser, report_file, study_file, width):
    for path, ready in ((report_file, "footer"), (study_file, "html[data-ready]")):
        context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme="dark")
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector(ready, state="attached")
        for part in ("", "#images", "#latents-0", "#graph-0", "#card-0", "#page-0"):
            page.evaluate("part => { location.hash = part; }", part)
            page.wait_for_timeout(60)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, part
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert max(dark) < 60
        context.close()


def test_the_dashboard_shows_the_numbers_under_the_pointer(watch, tmp_path):
    import mechvis
    import sae
    from mechvis import testing

    model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    images = mechvis.data.scenes(n=12, seed=2)
    site = "blocks.0.hook_resid_post"
    rows = sae.from_model(model, images, site, size=64)
    made = sae.train(rows, {"k4": sae.TopK(n_latents=16, k=4)}, sae.Training(tokens=512, batch=64), progress=False)
    pages = sae.latent_pages(model, images, made.dictionaries["k4"], progress=False)
    path = sae.dashboard(pages, tmp_path / "d.html").path
    page = watch.open(path, wait="#app:not([hidden])")
    latent = int(page.inner_text("#panel h2").split()[1])
    value = page.locator("#panel figcaption b").nth(0)
    heat = pages.heat(latent)[0]
    box = page.locator("#panel .frame").nth(0).bounding_box()
    down, across = heat.shape
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / across, box["y"] + (row + 0.5) * box["height"] / down)
    told, where = value.inner_text().split(" at ")
    assert where == f"patch ({row}, {column})" and abs(float(told) - heat.max()) < 0.01 * heat.max()
    before = page.inner_text("#panel h2")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#panel h2") != before
    watch.quiet(path)
