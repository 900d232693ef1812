"""What latents fire on: known answers, and the streaming way against everything in memory."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import sae
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName, UnknownSite
from mechvis.record import load_record
from sae.architectures.relu import ReLU
from sae.dashboards import LatentPages, collect, latent_pages, neighbours
from sae.dashboards import codes as encoding
from sae.dashboards.again import picture
from sae.dashboards.codes import reading_of
from sae.dashboards.counts import Counts, bins, edges, wilson
from sae.dashboards.plain import plain_codes, plain_examples

CLS, SILENT, N, SITE = 3, 4, 24, "hook_embed"


def brightness(i):
    return (30 + 9 * i) / 255


@pytest.fixture(scope="module")
def pages(tiny_vit, images, planted):
    return latent_pages(
        tiny_vit, images, planted, latents=range(5), n_top=4, n_quantile=3, batch_size=5, progress=False
    )


def top(pages, latent):
    return pages.tables["examples"].filter((pl.col("latent") == latent) & (pl.col("kind") == "top"))


def test_top_images_are_the_brightest_of_the_colour(pages):
    for colour in range(3):
        found = top(pages, colour)
        expected = [i for i in range(N) if i % 3 == colour][::-1][:4]
        assert found["image"].to_list() == expected
        assert found["rank"].to_list() == [0, 1, 2, 3]
        assert np.allclose(found["value"], [brightness(i) for i in expected], atol=1e-5)
        # One prefix token, then patches row by row.
        assert found["token"].to_list() == [1 + i % 9 for i in expected]
        assert set(found["type"]) == {"patch"}


def test_heat_maps_are_the_codes(pages):
    for colour in range(3):
        examples = pages.of(colour)["examples"]
        heat = pages.heat(colour)
        expected = np.zeros((examples.height, 3, 3))
        for e, image in enumerate(examples["image"]):
            expected[e, image % 9 // 3, image % 9 % 3] = brightness(image)
        assert np.allclose(heat, expected, atol=1e-5)
    # A latent that fires elsewhere has other maps: the test could fail.
    assert not pages.heat(CLS).any()


def test_quantiles_go_down_through_the_range_and_are_no_top_images(pages):
    found = pages.of(0)["examples"].filter(pl.col("kind") == "quantile")
    fired = [brightness(i) for i in range(N) if i % 3 == 0]
    assert found["image"].to_list() == [9, 3, 0]  # of 9, 6, 3, 0: the middles of three parts
    assert found["value"].is_sorted(descending=True)
    assert not set(found["image"]) & set(top(pages, 0)["image"])
    assert np.allclose(found["quantile"], [np.mean(np.array(fired) <= v + 1e-5) for v in found["value"]])


def test_classes_groups_frequency(pages):
    rows = {row["latent"]: row for row in pages.table.iter_rows(named=True)}
    assert [rows[c]["top_class"] for c in range(3)] == ["red", "green", "blue"]
    for colour in range(3):
        row = rows[colour]
        assert (row["fires"], row["images"], row["class_share"]) == (8, N, 1.0)
        assert row["class_base"] == pytest.approx(1 / 3) and row["class_mass"] == 1
        assert row["frequency_low"] < row["frequency"] == 1 / 3 < row["frequency_high"]
        assert 0.6 < row["class_share_low"] < 0.7 and row["class_share_high"] == 1
        assert row["density"] == pytest.approx(8 / (10 * N)) and row["prefix"] == 0
        values = [brightness(i) for i in range(N) if i % 3 == colour]
        assert row["mean"] == pytest.approx(np.mean(values), abs=1e-5)
        assert row["max"] == pytest.approx(max(values), abs=1e-5)
    # CLS fires everywhere, no class is its own, and it is not on the grid.
    assert rows[CLS]["frequency"] == 1 and rows[CLS]["prefix"] == 1
    assert rows[CLS]["class_share"] == pytest.approx(1 / 3)
    assert set(pages.of(CLS)["examples"]["type"]) == {"cls"} and set(pages.of(CLS)["examples"]["token"]) == {0}
    classes = pages.of(0)["classes"]
    assert classes["class"].to_list() == ["red"] and classes["rate"].to_list() == [1.0]
    assert pages.of(CLS)["groups"]["images"].to_list() == [12, 12]
    assert pages.tables["images"].filter(pl.col("image") == 5)["group"].to_list() == ["odd"]


def test_a_silent_latent_has_an_empty_page_if_it_is_asked_for(pages, tiny_vit, images, planted):
    row = pages.of(SILENT)["latent"]
    assert row["fires"] == 0 and row["frequency"] == 0
    assert all(row[name] is None for name in ("mean", "max", "top_class", "class_share", "class_base", "moran"))
    assert pages.of(SILENT)["examples"].height == 0
    found = latent_pages(tiny_vit, images, planted, progress=False)
    assert found.table["latent"].to_list() == [CLS, 0, 1, 2]
    assert any("1 of 5 latents fire on none" in line for line in found.caveats)
    two = latent_pages(tiny_vit, images, planted, latents=2, groups="place", progress=False)
    assert two.table["latent"].to_list() == [CLS, 0]
    assert two.of(0)["latent"]["top_group"] in ("place 0", "place 3", "place 6")


def test_latents_of_a_list_keep_its_order(pages, tiny_vit, images, planted):
    found = latent_pages(
        tiny_vit, images, planted, latents=[2, CLS, 0], n_top=4, n_quantile=3, n_neighbours=1, progress=False
    )
    assert found.table["latent"].to_list() == [2, CLS, 0]
    for latent in (2, CLS, 0):
        assert found.of(latent)["examples"].equals(pages.of(latent)["examples"])
        assert np.array_equal(found.heat(latent), pages.heat(latent))
        own = found.of(latent)["neighbours"]["neighbour"].to_list()
        assert own and set(own) <= {2, CLS, 0} - {latent}
    assert found.pick(latent=0)["top_class"] == "red"


def test_pictures_are_what_the_model_sees(pages, images):
    for image in (0, 23):
        assert np.abs(pages.picture(image).astype(int) - images.read(image).astype(int)).max() <= 1
    with pytest.raises(OutOfRange, match="no example of any latent"):
        pages.picture(999)
    with pytest.raises(OutOfRange, match="picture 999 does not exist"):
        pages.picture_file(999)
    assert picture(np.zeros((40, 20, 3), np.uint8), 16)[1:4] == b"PNG"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert picture(noise, 64)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("batch_size", [3, 64])
def test_streaming_is_everything_in_memory(tiny_vit, images, random_one, batch_size, monkeypatch):
    monkeypatch.setattr(encoding, "DENSE", 40 * 7)  # some rows at a time
    monkeypatch.setattr(collect, "SAMPLE", 4)
    sample = 2 * (3 + 4)
    found = latent_pages(
        tiny_vit, images, random_one, n_top=3, n_quantile=4, batch_size=batch_size, seed=5, progress=False
    )
    codes = plain_codes(reading_of(tiny_vit, random_one), images.pixels_for(tiny_vit.preprocess).double())
    assert codes.shape == (N, 10, 40) and 0.05 < (codes > 0).mean() < 0.5
    assert set(found.table["latent"]) == set(np.flatnonzero((codes > 0).any((0, 1))).tolist())
    crowded = 0
    for row in found.table.iter_rows(named=True):
        latent = row["latent"]
        own = codes[:, :, latent]
        expected = plain_examples(codes, latent, n_top=3, n_quantile=4, sample=sample, seed=5)
        examples = found.of(latent)["examples"]
        crowded += int((own > 0).any(1).sum() > sample)
        assert list(zip(examples["kind"], examples["image"], examples["token"], strict=True)) == [
            (kind, image, token) for kind, image, _, token, _ in expected
        ]
        assert np.allclose(examples["value"], [value for _, _, value, _, _ in expected])
        quantiles = [quantile for *_, quantile in expected]
        assert examples["quantile"].to_list() == pytest.approx(quantiles)
        # Heat maps: half a step of 255 from the codes, and never zero where the latent fires.
        heat, patches = found.heat(latent).reshape(-1, 9), own[examples["image"].to_numpy(), 1:]
        assert (np.abs(heat - patches) <= patches.max(1, keepdims=True) / 255 + 1e-9).all()
        assert np.array_equal(heat > 0, patches > 0)
        assert row["fires"] == (own > 0).any(1).sum() and row["density"] == pytest.approx((own > 0).mean())
        assert row["mean"] == pytest.approx(own[own > 0].mean()) and row["max"] == pytest.approx(own.max())
        assert row["prefix"] == pytest.approx((own[:, 0] > 0).sum() / (own > 0).sum())
        fired = np.bincount(images.labels[(own > 0).any(1)], minlength=3)
        assert row["class_share"] == pytest.approx(fired.max() / fired.sum())
        mass = np.bincount(images.labels, own.max(1), minlength=3)
        assert row["class_mass"] == pytest.approx(mass[fired.argmax()] / mass.sum())
        histogram = found.arrays["histogram"][found.table["latent"].to_list().index(latent)]
        assert histogram.tolist() == np.histogram(own[own > 0], found.arrays["histogram_edges"])[0].tolist()
    assert crowded > 3  # for some, the sample is not everything


def test_batches_change_nothing(tiny_vit, images, random_one):
    made = [latent_pages(tiny_vit, images, random_one, batch_size=size, progress=False) for size in (1, 7, 24)]
    for other in made[1:]:
        for name, table in made[0].tables.items():
            assert table.columns == other.tables[name].columns
            for column, kind in table.schema.items():
                a, b = table[column].to_list(), other.tables[name][column].to_list()
                assert [x is None for x in a] == [x is None for x in b], (name, column)
                if kind.is_float():
                    a, b = ([x for x in values if x is not None] for values in (a, b))
                    b = pytest.approx(b, rel=1e-6, abs=1e-9)
                assert a == b, (name, column)


def test_the_interval_of_the_mean_is_the_bootstraps(tiny_vit, images, random_one):
    found = latent_pages(tiny_vit, images, random_one, progress=False)
    codes = plain_codes(reading_of(tiny_vit, random_one), images.pixels_for(tiny_vit.preprocess).double())
    compared = 0
    for row in found.table.filter(pl.col("fires") > 18).head(5).iter_rows(named=True):
        own = codes[:, :, row["latent"]]
        total, count = own.sum(1), (own > 0).sum(1)

        def ratio(rows, total=total, count=count):
            return total[rows].sum() / max(count[rows].sum(), 1)

        drawn = [ratio(np.random.default_rng(i).integers(0, N, N)) for i in range(400)]
        half = (row["mean_high"] - row["mean_low"]) / 2
        assert half == pytest.approx(1.96 * np.std(drawn), rel=0.25)
        compared += 1
    assert compared == 5


def test_neighbours_are_those_of_all_pairs(tiny_vit, images, random_one, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 40 * 6)
    found = latent_pages(tiny_vit, images, random_one, n_neighbours=3, progress=False)
    number = found.table["latent"].to_numpy().copy()
    codes = plain_codes(reading_of(tiny_vit, random_one), images.pixels_for(tiny_vit.preprocess).double())
    fires = (codes.reshape(-1, 40) > 0)[:, number]
    unit = torch.nn.functional.normalize(random_one.directions.detach(), dim=1)[number]
    cosine = (unit @ unit.T).numpy()
    both = (fires.T.astype(int) @ fires.astype(int)).astype(float)
    together = both / (fires.sum(0)[:, None] + fires.sum(0) - both)
    for values, kind, column in ((cosine, "decoder", "cosine"), (together, "together", "together")):
        near = values.copy()
        np.fill_diagonal(near, -np.inf)
        for place, latent in enumerate(number.tolist()):
            rows = found.of(latent)["neighbours"].filter(pl.col("kind") == kind)
            expected = np.sort(near[place])[::-1][:3]
            assert rows.height == (3 if kind == "decoder" else (expected > 0).sum())
            assert np.allclose(rows[column], expected[: rows.height])
            assert latent not in rows["neighbour"].to_list()
            for row in rows.iter_rows(named=True):
                other = number.tolist().index(row["neighbour"])
                assert row["both"] == both[place, other] and row["cosine"] == pytest.approx(cosine[place, other])
                assert row["together_low"] <= row["together"] <= row["together_high"]


def test_rows_of_firing_together_are_sampled_where_there_are_many(tiny_vit, images, random_one):
    sizes = set()
    for size in (4, 24):
        together = neighbours.Together(N, seed=1, rows=100)
        for start in range(0, N, size):
            entries, _ = reading_of(tiny_vit, random_one).entries(
                images[start : start + size].pixels_for(tiny_vit.preprocess).double(), range(start, start + size)
            )
            together.add(entries)
        sizes.add((together.count, together.matrix(np.arange(40), 40).sum()))
    assert len(sizes) == 1 and 60 < next(iter(sizes))[0] < 140


def test_other_seeds_draw_other_samples(tiny_vit, images, random_one, monkeypatch):
    monkeypatch.setattr(collect, "SAMPLE", 2)
    a, b, c = (
        latent_pages(tiny_vit, images, random_one, n_top=1, n_quantile=3, seed=seed, progress=False).tables["examples"]
        for seed in (0, 0, 1)
    )
    assert a.equals(b) and not a.equals(c)
    assert a.filter(pl.col("kind") == "top").equals(c.filter(pl.col("kind") == "top"))


def test_crosscoders_and_transcoders_of_one_model(tiny_vit, images):
    a, b = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    cache = tiny_vit.run(images, capture=[a, b]).cache
    rows = {name: cache[name].flatten(0, 1) for name in (a, b)}
    several = sae.start(ReLU(n_latents=12, normalise="none"), rows).double()
    found = latent_pages(tiny_vit, images, several, progress=False)
    codes = several.encode(rows).detach().numpy().reshape(N, 10, 12)
    for row in found.table.iter_rows(named=True):
        assert row["max"] == pytest.approx(codes[:, :, row["latent"]].max())
    trans = sae.start(ReLU(n_latents=12, normalise="none"), rows, reads=a, writes=b).double()
    found = latent_pages(tiny_vit, images, trans, progress=False)
    codes = trans.encode(rows[a]).detach().numpy().reshape(N, 10, 12)
    assert found.table["max"].to_list() == pytest.approx([codes[:, :, i].max() for i in found.table["latent"]])
    # Names of their own, said where they are.
    renamed = sae.start(ReLU(n_latents=12, normalise="none"), {"one": rows[a], "two": rows[b]}).double()
    again = latent_pages(tiny_vit, images, renamed, {"one": a, "two": b}, progress=False)
    assert again.table.height > 0
    with pytest.raises(BadData, match=r"reads 2 \(one, two\)"):
        latent_pages(tiny_vit, images, renamed, a, progress=False)
    with pytest.raises(UnknownName, match="three"):
        latent_pages(tiny_vit, images, renamed, {"three": a}, progress=False)
    with pytest.raises(UnknownSite, match=r"this dictionary reads 'one'.*site="):
        latent_pages(tiny_vit, images, renamed, progress=False)


def test_a_dictionary_over_two_models_is_refused_with_advice(tiny_vit, images):
    rows = {f"{name}/{SITE}": torch.randn(40, 16, dtype=torch.float64) for name in ("base", "after")}
    both = sae.start(ReLU(n_latents=4, normalise="none"), rows)
    with pytest.raises(RefusedMethod, match=r"the model 'base' among several.*sae\.diffing\.compare"):
        latent_pages(tiny_vit, images, both, progress=False)


def test_heads_registers_and_pooled_sites(tiny_vit, images):
    site = "blocks.0.attn.hook_z"
    z = tiny_vit.run(images, capture=[site]).cache[site]
    one = sae.start(ReLU(n_latents=6, normalise="none"), {site: z.flatten(0, 2)}).double()
    found = latent_pages(tiny_vit, images, one, progress=False)
    codes = one.encode(z).detach().numpy()  # image token head latent
    for row in found.table.iter_rows(named=True):
        assert row["max"] == pytest.approx(codes[..., row["latent"]].max())
        examples, heat = found.of(row["latent"])["examples"], found.heat(row["latent"])
        of_image = codes[examples["image"].to_numpy(), 1:, :, row["latent"]].max(2).reshape(-1, 3, 3)
        assert (np.abs(heat - of_image) <= of_image.max((1, 2), keepdims=True) / 255 + 1e-9).all()
        at = codes[examples["image"].to_numpy(), :, :, row["latent"]].max(2).argmax(1)
        assert examples["token"].to_list() == at.tolist()
    # A site without tokens has examples, and no maps.
    pooled = tiny_vit.run(images, capture=["hook_pooled"]).cache["hook_pooled"]
    one = sae.start(ReLU(n_latents=6, normalise="none"), {"hook_pooled": pooled}).double()
    found = latent_pages(tiny_vit, images, one, progress=False)
    assert found.grid == (0, 0) and found.arrays["maps"].shape[1] == 0
    assert set(found.tables["examples"]["type"]) == {"pooled"} and set(found.tables["examples"]["token"]) == {-1}
    assert "moran" not in found.table.columns


def test_registers_are_shown_as_such_and_selections_of_tokens():
    import mechvis

    model = mechvis.load(testing.tiny("dinov2-registers", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("dinov2-registers", n=6, dtype=torch.float64)
    site = "blocks.0.hook_resid_post"
    x = model.run(pixels, capture=[site]).cache[site]
    generator = torch.Generator().manual_seed(0)
    d = sae.start(ReLU(n_latents=30, normalise="none"), {site: x.flatten(0, 1)}).double()
    with torch.no_grad():
        d.W_enc.copy_(torch.randn(d.W_enc.shape, generator=generator, dtype=torch.float64))
    found = latent_pages(model, pixels, d, n_top=2, n_quantile=1, progress=False)
    assert "register" in set(found.tables["examples"]["type"])
    rows = found.tables["examples"].filter(pl.col("type") == "register")
    assert set(rows["token"]) <= {1, 2}
    assert "top_class" not in found.table.columns and "classes" not in found.tables
    only = latent_pages(model, pixels, d, tokens="patches", n_top=2, n_quantile=1, progress=False)
    assert set(only.tables["examples"]["type"]) == {"patch"}
    assert only.tables["examples"]["token"].min() >= 3
    codes = d.encode(x[:, 3:]).detach().numpy()
    for row in only.table.iter_rows(named=True):
        assert row["max"] == pytest.approx(codes[..., row["latent"]].max())


def test_negative_codes_are_counted_and_left_out(tiny_vit, images):
    from sae import baselines

    rows = tiny_vit.run(images, capture=[SITE]).cache[SITE].flatten(0, 1)
    pca = baselines.pca({SITE: rows})
    found = latent_pages(tiny_vit, images, pca, progress=False)
    codes = pca.encode(rows).detach()
    told = next(line for line in found.caveats if "below zero" in line)
    assert told.startswith(f"{int((codes < 0).sum()):,} codes are below zero")
    assert found.tables["examples"]["value"].min() > 0


def test_save_load_report(pages, tmp_path):
    pages.save(tmp_path / "pages")
    found = LatentPages.load(tmp_path / "pages")
    assert all(table.equals(found.tables[name]) for name, table in pages.tables.items())
    assert all(np.array_equal(array, found.arrays[name]) for name, array in pages.arrays.items())
    assert load_record(tmp_path / "pages").kind == "latent_pages"
    assert set(pages.words) >= set(pages.table.columns) - {
        name for name in pages.table.columns if name.endswith(("_low", "_high"))
    }


def test_the_ordinary_report_shows_panels(tiny_vit, images, planted, tmp_path):
    found = latent_pages(tiny_vit, images, planted, latents=[0], n_top=2, n_quantile=1, progress=False)
    assert len(found.figures()) == 1
    page = found.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Strongest images" in page and "red" in page


def test_the_model_leaves_as_it_came(tiny_vit, images, planted):
    with testing.assert_untouched(tiny_vit):
        latent_pages(tiny_vit, images, planted, progress=False)


def test_bad_input(tiny_vit, images, planted, pages):
    def look(**more):
        return latent_pages(tiny_vit, images, planted, progress=False, **more)

    for wrong in ({"n_top": 0}, {"n_quantile": -1}, {"thumbnail": 4}, {"batch_size": 0}, {"n_texts": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(OutOfRange, match=f"{name}={value}: it is at least"):
            look(**wrong)
    with pytest.raises(OutOfRange, match="latent 7 does not exist: this dictionary has 5"):
        look(latents=[1, 7])
    with pytest.raises(BadData, match="at least one, each once"):
        look(latents=[1, 1])
    with pytest.raises(OutOfRange, match="latents=0"):
        look(latents=0)
    with pytest.raises(UnknownName, match="place"):
        look(groups="plaec")
    with pytest.raises(BadData, match="texts= need a CLIP model"):
        look(texts=["a", "b"])
    with pytest.raises(BadData, match="clip= is for nearest texts"):
        look(clip=SimpleNamespace(encode_text=None))
    with pytest.raises(OutOfRange, match="latent 9 has no page"):
        pages.of(9)
    with pytest.raises(OutOfRange, match="latent 9 has no page"):
        pages.heat(9)
    silent = [SILENT]
    assert latent_pages(tiny_vit, images, planted, latents=silent, progress=False).table.height == 1
    quiet = sae.start(ReLU(n_latents=3, normalise="none"), {SITE: torch.randn(9, 16)}).double()
    with torch.no_grad():
        quiet.b_enc.fill_(-100)
    with pytest.raises(BadData, match="none of 3 latents fires on any of 24 images"):
        latent_pages(tiny_vit, images, quiet, progress=False)
    with torch.no_grad():
        quiet.W_enc[1, 1] = float("nan")
    with pytest.raises(NotFinite, match="NaN or Inf in the codes of image 0, row 0"):
        latent_pages(tiny_vit, images, quiet, progress=False)
    wide = sae.start(ReLU(n_latents=3, normalise="none"), {SITE: torch.randn(9, 5)}).double()
    with pytest.raises(ShapeMismatch, match="width 5"):
        latent_pages(tiny_vit, images, wide, progress=False)
    with pytest.raises(BadData, match="no images"):
        latent_pages(tiny_vit, torch.zeros(0, 3, 12, 12), planted, progress=False)
    with pytest.raises(BadData, match="pixels have none"):
        latent_pages(tiny_vit, torch.zeros(2, 3, 12, 12), planted, groups="place", progress=False)


def test_small_things():
    assert Counts(2).used_bins()[0].shape == (2, 1)
    values = np.exp(np.random.default_rng(0).normal(0, 9, 2000))
    at, ends = bins(values), edges()
    inside = (values > ends[0]) & (values < ends[-1])
    assert ((ends[at] <= values) & (values < ends[at + 1]))[inside].all()
    share, low, high = wilson(np.array([0, 5, 0]), np.array([5, 5, 0]))
    assert share[:2].tolist() == [0, 1] and low[0] == 0 and high[1] == 1 and np.isnan(share[2])
