"""The explorer in a real browser: it opens from disk, and what the pointer finds are the numbers that went in."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from mechvis.explorer import explore
from mechvis.explorer.packing import shares, signed, values_of, weights_of
from mechvis.results import Result

FULL = 4
"""Images of the study with full patterns."""


def number(value: float) -> str:
    """A number as the page writes it."""
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-3 else "0"


def at(page, patch, grid):
    """Put the pointer onto a patch of the stage."""
    box = page.locator("#stage").bounding_box()
    row, column = divmod(patch, grid[1])
    page.mouse.move(
        box["x"] + (column + 0.5) * box["width"] / grid[1], box["y"] + (row + 0.5) * box["height"] / grid[0]
    )


def go(page, part):
    """Open a part by its link."""
    page.click(f'nav a[href="#{part}"]')
    page.wait_for_selector(f"#{part}")


def ready(page, state):
    page.wait_for_selector(f'#stage[data-ready="{state}"]')


def control(page, label):
    return page.locator("#viewer-controls label", has_text=label).locator("select")


def painted(page, selector="#stage-map"):
    """Colours of a canvas, `[place 4]`."""
    uri = page.evaluate("s => document.querySelector(s).toDataURL()", selector)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA")).reshape(-1, 4)


@pytest.fixture
def page(watch, study_file):
    yield watch.open(study_file)
    watch.quiet(study_file)


def test_it_opens_on_the_overview_and_shows_one_part_at_a_time(page):
    assert page.title() == "A planted study"
    parts = ["overview", "card-0", "images", "latents-0", "graph-0", "page-0"]
    assert page.locator("main > section:visible").evaluate_all("all => all.map(one => one.id)") == ["overview"]
    for part in parts:
        go(page, part)
        assert page.locator("main > section:visible").evaluate_all("all => all.map(one => one.id)") == [part]
        assert page.get_attribute(f'nav a[href="#{part}"]', "aria-current") == "page"


def test_hovering_a_patch_shows_where_it_looks(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    kept = weights_of(*shares(study["attention"]))
    # Nothing under the pointer: the token that is read.
    best = int(kept[0, 1, 0, 0].argmax())
    assert f"L1H0: token 0 looks at {'token 0' if best == 0 else 'patch'}" in page.inner_text("#readout")
    for layer, head, patch in ((1, 0, 2), (1, 1, 0), (0, 1, 3)):
        control(page, "layer").select_option(str(layer))
        ready(page, f"attention 0 {layer}")
        control(page, "head").select_option(str(head))
        at(page, patch, (2, 2))
        row = kept[0, layer, head, patch + 1]
        words = page.inner_text("#readout")
        assert words.startswith(f"L{layer}H{head}: patch ({patch // 2}, {patch % 2}) looks at ")
        names = ["token 0", "patch (0, 0)", "patch (0, 1)", "patch (1, 0)", "patch (1, 1)"]
        order = sorted(range(5), key=lambda key: (-row[key], key))[:3]
        assert words.endswith(", ".join(f"{names[key]} {number(row[key])}" for key in order)), words
        # The picture says the same: the largest weight has the strongest colour.
        colours = painted(page)
        assert colours[:, 3].argmax() == row[1:].argmax()
        assert f"{number(row[0])}" in page.inner_text("#stage-prefix")
        cursor = page.locator("#stage-cursor").bounding_box()
        stage = page.locator("#stage").bounding_box()
        assert abs(cursor["x"] - stage["x"] - (patch % 2) * stage["width"] / 2) < 2
    # The small maps are those of all heads for the same patch.
    assert page.locator("#strip .multiple").count() == 2
    assert f"max {number(kept[0, 0, 0, 4, 1:].max())}" in page.locator("#strip .multiple").nth(0).inner_text()
    control(page, "patch under").select_option("to")
    at(page, 1, (2, 2))
    column = kept[0, 0, 1, :, 2]
    assert number(column.max()) in page.inner_text("#readout") and "is looked at by" in page.inner_text("#readout")


def test_keys_move_the_patch_and_hold_it(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "patch (1, 1) looks at" in page.inner_text("#readout")
    page.keyboard.press("Enter")
    assert page.locator("#stage-cursor.pinned").count() == 1
    at(page, 0, (2, 2))
    assert "patch (1, 1) looks at" in page.inner_text("#readout"), "a held patch stays"
    page.keyboard.press("Escape")
    assert "token 0 looks at" in page.inner_text("#readout")
    page.focus("#stage-prefix .chip")
    assert "token 0 looks at" in page.inner_text("#readout")


def test_images_without_full_patterns_show_what_is_read(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    page.click(f"#image-{FULL}")
    ready(page, f"attention {FULL} 1")
    at(page, 3, (2, 2))
    kept = weights_of(*shares(study["attention"][:, :, :, 0]))
    words = page.inner_text("#readout")
    assert f"patch (1, 1) gets {number(kept[FULL, 1, 0, 4])}" in words and "first images only" in words


def test_maps_switch_by_method_and_have_their_own_grids(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    page.click("#image-2")
    control(page, "show").select_option("maps")
    ready(page, "maps 2 1")
    for method, grid, patch in ((0, (2, 2), 3), (1, (4, 4), 9)):
        control(page, "method").select_option(str(method))
        at(page, patch, grid)
        kept = values_of(*signed(study["maps"][method][2].reshape(1, -1)))[0]
        said = page.inner_text("#readout")
        assert said.startswith(
            f"method {method}: patch ({patch // grid[1]}, {patch % grid[1]}) has {number(kept[patch])};"
        )
        assert painted(page).shape[0] == grid[0] * grid[1]
    assert page.locator("#strip .name").all_inner_texts() == ["method 0", "method 1"]
    # Red for what supports, blue for what opposes.
    control(page, "method").select_option("0")
    values = study["maps"][0][2].ravel()
    colours = painted(page)
    assert ((colours[:, 0] > colours[:, 2]) == (values > 0)).all()


def test_latents_of_a_patch(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    control(page, "show").select_option("latents-0")
    ready(page, "latents-0 0 1")
    at(page, 3, (2, 2))
    # Image 0 is an example of latents 7 (peak 3) and 40 (peak 1).
    on_patch = {7: study["heat"][0][3] / 255 * 3.0, 40: study["heat"][3][3] / 255 * 1.0}
    cells = page.locator("#strip .multiple")
    order = sorted(on_patch, key=lambda latent: -on_patch[latent])
    assert [int(text.split()[1]) for text in page.locator("#strip .name").all_inner_texts()] == order
    assert number(on_patch[order[0]]) in cells.nth(0).inner_text()
    assert "2 latents have it among their examples" in page.inner_text("#readout")


def test_the_list_of_latents_sorts_searches_and_opens(page, study):
    go(page, "latents-0")
    page.wait_for_selector('#latents-0-panel[data-ready="0"]')
    rows = page.locator("#latents-0-rows .row")
    assert [text.split()[0] for text in rows.all_inner_texts()] == ["#7", "#40", "#11"], "unknown frequency comes last"
    assert page.locator("#latents-0-panel .examples figure").count() == 2
    assert page.locator("#latents-0-panel .examples b").all_inner_texts() == ["3", "2"]
    assert "frequency\n0.5 [0.3, 0.7]" in page.inner_text("#latents-0-panel .facts")
    page.focus("#latents-0-list")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector('#latents-0-panel[data-ready="2"]')
    assert page.locator("#latents-0-panel h4").all_inner_texts() == [
        "Strongest images",
        "From the whole range of images on which it fires",
    ]
    frame = page.locator("#latents-0-panel .frame").nth(0)
    box = frame.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    assert (
        page.locator("#latents-0-panel b").nth(0).inner_text() == f"{number(study['heat'][2][2] / 255 * 1.5)} at (1, 0)"
    )
    for words, left in (("40", ["#40"]), ("class 0", ["#7"]), ("label 2", ["#40"]), ("nothing like it", [])):
        page.fill("#latents-0-search", words)
        assert [text.split()[0] for text in rows.all_inner_texts()] == left
    page.fill("#latents-0-search", "")
    page.locator("#latents-0-panel .frame-button").nth(0).click()
    ready(page, "latents-0 1 1")
    assert "latent 40 · label 2" in page.inner_text("#readout")


def test_gallery_filters(page, study):
    go(page, "images")
    ready(page, "attention 0 1")

    def shown():
        return page.locator("#gallery .cell").evaluate_all("all => all.map(one => Number(one.id.slice(6)))")

    assert shown() == [0, 1, 2, 3, 4, 5]
    page.select_option("#gallery-right", "0")
    assert shown() == [2, 5] and page.inner_text("#gallery-count") == "2 of 6 images"
    page.select_option("#gallery-right", "")
    page.select_option("#gallery-label", label="class 1")
    page.select_option("#gallery-group", label="group 1")
    assert shown() == [1, 3, 5]
    page.select_option("#gallery-prediction", label="class 0")
    assert shown() == [5]
    for name in ("label", "group", "prediction"):
        page.select_option(f"#gallery-{name}", "")
    page.select_option("#gallery-sort", "number 0")
    assert shown() == [3, 0, 1, 4, 2, 5], "unknown comes last"
    page.fill("#gallery-search", "CAPTION 4")
    assert shown() == [4]
    page.focus("#gallery")
    page.fill("#gallery-search", "")
    page.focus("#gallery")
    page.keyboard.press("Home")
    assert page.get_attribute("#stage-picture", "alt") == "image 3"
    assert "✓ right" in page.inner_text("#about")


def test_the_circuit_fewer_edges_and_the_numbers_under_the_pointer(page):
    go(page, "graph-0")

    def seen():
        return page.locator("#graph-0-drawing .edge").evaluate_all(
            "all => all.filter(one => getComputedStyle(one).display !== 'none').map(one => Number(one.dataset.place))"
        )

    # Three of five edges belong to the circuit: these are shown first.
    assert seen() == [0, 1, 2]
    slider = page.locator("#graph-0-slider")
    slider.fill("1")
    assert seen() == [0]
    slider.fill("5")
    assert seen() == [0, 1, 2, 3, 4]
    page.locator("#graph-0-drawing .node").nth(1).hover()
    assert page.inner_text("#graph-0-info") == "L0H1: 1 edges in that are drawn (sizes sum to 2), 1 edges out (1)"
    assert page.locator("#graph-0-drawing .edge.lit").count() == 2
    page.locator("#graph-0-drawing .edge").nth(0).dispatch_event("pointerenter")
    assert page.inner_text("#graph-0-info") == "embed → L0H1.v: score 2, note 0"
    widths = page.locator("#graph-0-drawing .edge").evaluate_all(
        "all => all.map(one => Number(one.getAttribute('stroke-width')))"
    )
    assert widths[0] > widths[1] > widths[2] > widths[3] > widths[4]
    # A head leads to its attention.
    page.locator("#graph-0-drawing .node").nth(2).click()
    ready(page, "attention 0 1")
    assert page.inner_text("#readout").startswith("L1H0: ")


def test_tables_sort_by_keyboard_and_filter(page):
    go(page, "page-0")
    table = page.locator("#page-0 table").nth(0)

    def numbers():
        return [
            float(text.replace("\N{MINUS SIGN}", "-")) for text in table.locator("td.number:visible").all_inner_texts()
        ]

    heading = table.locator("th").nth(1)
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending" and numbers() == sorted(numbers(), reverse=True)
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
    page.locator("#page-0 input.filter").nth(0).fill("CELL 11")
    assert table.locator("tbody tr:visible").count() == 1
    assert page.locator("#page-0 .tools span").nth(0).inner_text() == "1 of 12 rows"


def test_cards_say_failed_first_and_not_by_colour_alone(page):
    go(page, "card-0")
    gates = page.locator("#card-0 .gates li")
    assert [text.split("\n")[0] for text in gates.all_inner_texts()] == ["✗", "✓", "–"]
    assert (
        "gate 0 failed" in gates.nth(0).inner_text()
        and "statistic 0 (needed: threshold 0)" in gates.nth(0).inner_text()
    )
    assert "said 0" in gates.nth(2).inner_text()
    assert page.locator("#card-0 .interval").count() == 1 and page.locator("#card-0 .dot").count() == 2


def saved(page, act):
    with page.expect_download() as download:
        act()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_everything_can_be_taken_away(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    at(page, 2, (2, 2))
    page.mouse.down()
    page.mouse.up()  # hold the patch
    name, data = saved(page, lambda: page.click("#viewer-export button >> nth=1"))
    rows = list(csv.reader(io.StringIO(data.decode())))
    kept = weights_of(*shares(study["attention"]))[0, 1, 0, 3]
    assert name == "map-image-0.csv" and rows[0] == ["token", "weight"] and rows[1][0] == "token 0"
    assert np.allclose([float(row[1]) for row in rows[1:]], kept, atol=1e-6)
    name, data = saved(page, lambda: page.click("#viewer-export button >> nth=0"))
    assert name == "map-image-0.png" and Image.open(io.BytesIO(data)).size == (512, 512)
    name, data = saved(page, lambda: page.click("#gallery-export button"))
    assert len(data.decode().splitlines()) == 7 and "class 1" in data.decode()

    go(page, "graph-0")
    name, data = saved(page, lambda: page.click("#graph-0-controls button >> nth=0"))
    assert name == "graph-0.svg" and data.startswith(b"<svg") and b"stroke-width" in data and b"L0H1" in data
    name, data = saved(page, lambda: page.click("#graph-0-controls button >> nth=1"))
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert picture.std() > 5, "the drawing is there, in its colours"
    name, data = saved(page, lambda: page.click("#graph-0-controls button >> nth=2"))
    assert data.decode().splitlines()[1] == "embed,L0H1,v,2,1,note 0"

    go(page, "page-0")
    name, data = saved(page, lambda: page.locator("#page-0 .tools button").nth(0).click())
    assert len(data.decode().splitlines()) == 13

    go(page, "latents-0")
    page.wait_for_selector('#latents-0-panel[data-ready="0"]')
    name, data = saved(page, lambda: page.click("#latents-0-panel .tools button >> nth=0"))
    assert name == "latent-7.png" and Image.open(io.BytesIO(data)).size[0] > 200
    name, data = saved(page, lambda: page.click("#latents-0-panel .tools button >> nth=1"))
    row = next(csv.reader(io.StringIO(data.decode().splitlines()[1])))
    assert np.allclose([float(cell) for cell in row[2:]], study["heat"][0] / 255 * 3.0, atol=1e-5)


def test_cells_of_csv_files_compute_nothing(page):
    cells = ["=1+1", "+1+1", "-1+1", "@x", "\t=1", "-0.5", "+3e5", 'a"b', "a,b", "plain", "-"]
    found = json.loads(page.evaluate("cells => JSON.stringify(cells.map(csvCell))", cells))
    assert found == ["'=1+1", "'+1+1", "'-1+1", "'@x", "'\t=1", "-0.5", "+3e5", '"a""b"', '"a,b"', "plain", "'-"]
    assert page.evaluate("fileName('../../etc/passwd\\u202e', 'csv')") == "etc-passwd.csv"


def test_light_and_dark(page):
    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert page.inner_text("#theme") == "theme: auto"
    light = ground()
    page.click("#theme")
    assert ground() == light and page.get_attribute("html", "data-theme") == "light"
    page.click("#theme")
    assert ground() != light and page.inner_text("#theme") == "theme: dark"


def test_pictures_and_figures_are_really_drawn(page, study):
    go(page, "images")
    ready(page, "attention 0 1")
    assert page.evaluate("document.getElementById('stage-picture').naturalWidth") == study["images"].shape[1]


def test_it_can_be_read_without_scripts(browser, study_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(study_file.as_uri())
    assert page.locator("main > section:visible").count() == 6
    assert page.locator("#images table:visible tbody tr").count() == 6
    assert page.locator("#latents-0 table:visible tbody tr").count() == 3
    assert page.locator("#graph-0-drawing .node:visible").count() == 5
    assert page.locator("#card-0 .gates li:visible").count() == 3
    assert page.locator("button.tool:visible").count() == 0, "nothing that does nothing"
    context.close()


def test_names_of_heads_in_tables_lead_to_what_they_look_at(watch, study, tmp_path):
    values = {"logit_diff": np.array([[1.0, 2.0, 3.0], [0.5, 0.1, -0.1], [0.0, 0.0, 0.1]])}
    heads = [{"layer": 1, "head": 1}, {"layer": 0, "head": 0}, {"layer": 7, "head": 0}]
    path = explore(tmp_path / "s.html", Result.from_values("sweep", "Heads", heads, values), *study["panels"][:2]).path
    page = watch.open(path)
    go(page, "page-0")
    assert page.locator("#page-0 .link").all_inner_texts() == ["L1H1", "L0H0"], "heads that are not shown are no links"
    page.locator("#page-0 .link").nth(1).click()
    ready(page, "attention 0 0")
    assert page.inner_text("#readout").startswith("L0H0: token 0 looks at ")
    watch.quiet(path)
