"""From what a study holds to panels: each thing becomes what it is, and images are joined by their ids only."""

import numpy as np
import polars as pl
import pytest

import mechvis
from mechvis.errors import BadData, NotFinite, UnknownName
from mechvis.explorer import Explorable
from mechvis.explorer.cards import card_in
from mechvis.explorer.gather import gather, merged, panels_of
from mechvis.explorer.graph import graph_of_table, layout
from mechvis.explorer.panels import Edge, Graph, Latents, Maps, Page, Pictures
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.report.blocks import Section, Text
from mechvis.results import Result


def result(**more):
    values = {"logit_diff": np.array([[1.0, 2.0, 3.0], [-9.0, 0.1, -0.1]])}
    images = pl.DataFrame({"id": ["a", "b", "c"]})
    units = [{"layer": 0, "head": 0}, {"layer": 0, "head": 1}]
    return Result.from_values("head_ablation", "Heads", units, values, images=images, **more)


def kinds(found):
    return [type(panel).__name__ for panel in found]


def test_a_result_gives_its_report_and_the_effect_of_its_strongest_unit_per_image():
    column, page = panels_of(result())
    assert isinstance(page, Page) and page.name == "Heads" and page.sections[0].title == "What was found"
    assert list(column.numbers) == ["effect of L0H1 on logit_diff"]
    assert column.numbers["effect of L0H1 on logit_diff"].tolist() == [-9.0, 0.1, -0.1]
    # Of these images nothing else is known, so they are no gallery.
    assert gather([result()]).pictures is None
    gallery = Pictures(ids=("b", "x"), files=(b"1", b"2"))
    joined = gather([result(), gallery]).pictures
    assert joined.ids == ("b", "x")
    assert np.array_equal(joined.numbers["effect of L0H1 on logit_diff"], [0.1, np.nan], equal_nan=True)


def test_nothing_is_written_while_reports_are_collected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    panels_of(result())
    assert list(tmp_path.iterdir()) == []


def test_tables_of_edges_become_circuits():
    table = pl.DataFrame(
        {"unit": ["e1", "e2"], "writer": ["embed", "L0H1"], "reader": ["L0H1.q", "out"], "metric": ["m", "m"],
         "effect": [1.0, -0.5], "low": [0.5, None], "high": [1.5, None], "n": [3, 3], "p": [0.01, None],
         "significant": [True, False]}
    )  # fmt: skip
    found = panels_of(Result(kind="eap", title="EAP", table=table))
    assert kinds(found) == ["Graph"] and found[0].sections[0].title == "What was found"
    first, second = found[0].edges
    assert (first.source, first.target, first.entry, first.score) == ("embed", "L0H1", "q", 1.0)
    assert first.note == "95 % interval [0.5, 1.5], p 0.01" and second.note == "" and second.score == -0.5


def test_circuits_of_the_package_are_drawn_as_they_are():
    import circuits

    graph = circuits.EdgeGraph((2,))
    circuit = circuits.Circuit.of(graph, ["embed->L0H1.v", "L0H1->out"], title="small")
    found = panels_of(circuit)
    assert kinds(found) == ["Graph"] and found[0].name == "small"
    assert [(edge.source, edge.target, edge.entry, edge.kept) for edge in found[0].edges] == [
        ("embed", "L0H1", "v", True), ("L0H1", "out", "", True),
    ]  # fmt: skip


def test_places_of_components():
    edges = (
        Edge(source="embed", target="L0H0", entry="q", score=None),
        Edge(source="L0H0", target="L0MLP", entry="", score=None),
        Edge(source="L0MLP", target="L1H1", entry="v", score=None),
        Edge(source="L0H0", target="other", entry="", score=None),
        Edge(source="L1H1", target="out", entry="", score=None),
    )
    nodes = layout(edges)
    rows = {name: node.y for name, node in nodes.items()}
    assert rows["embed"] < rows["L0H0"] < rows["L0MLP"] < rows["L1H1"] < rows["out"] and rows["other"] > rows["L0H0"]
    assert (nodes["L1H1"].kind, nodes["L1H1"].layer, nodes["L1H1"].head) == ("head", 1, 1)
    assert all(edge_y(nodes, edge) for edge in edges), "every edge goes up"
    circle = (Edge(source="a", target="b", entry="", score=None), Edge(source="b", target="a", entry="", score=None))
    with pytest.raises(BadData, match="go in a circle"):
        layout(circle)
    with pytest.raises(BadData, match="no edge"):
        layout(())


def edge_y(nodes, edge):
    return nodes[edge.source].y < nodes[edge.target].y


def test_tables_that_are_no_circuit():
    with pytest.raises(UnknownName, match="reader"):
        graph_of_table(pl.DataFrame({"writer": ["a"]}), "g")
    with pytest.raises(NotFinite, match="a->b has the score inf"):
        graph_of_table(pl.DataFrame({"writer": ["a"], "reader": ["b"], "score": [np.inf]}), "g")
    with pytest.raises(BadData, match="has no edge"):
        graph_of_table(pl.DataFrame({"writer": [], "reader": []}), "g")


def maps_record(ids=None, n=3, **more):
    images = {"image": range(n)} if ids is None else {"id": ids}
    return Record(
        kind="attribution", title="Maps", tables={"images": pl.DataFrame(images)}, facts={"method": "grad_cam"},
        arrays={"maps": np.arange(4.0 * n).reshape(n, 2, 2)}, **more,
    )  # fmt: skip


def test_maps_of_records_with_ids():
    maps, page = panels_of(maps_record(["a", "b", "c"]))
    assert isinstance(maps, Maps) and maps.methods == ("grad_cam",) and maps.ids == ("a", "b", "c")
    assert np.array_equal(maps.values[0], np.arange(12.0).reshape(3, 2, 2)) and isinstance(page, Page)
    four = Record(kind="attribution", title="M", tables={"images": pl.DataFrame({"id": ["a"]})},
                  arrays={"maps": np.ones((2, 1, 2, 2))}, facts={"methods": ["x"]})  # fmt: skip
    assert panels_of(four)[0].methods == ("x", "M 1")


def test_numbered_images_are_the_studys_only_if_they_are_proven_to_be():
    images = mechvis.data.scenes(n=5, seed=3)
    same = maps_record(provenance=provenance(images=images[:3]))
    assert panels_of(same, images)[0].ids == images.ids[:3]
    # Other images, or images that nothing is known of, keep a name of their own: never a picture of another image.
    for other in (maps_record(provenance=provenance(images=images[1:4])), maps_record(), maps_record(n=9)):
        found = panels_of(other, images)[0]
        assert not set(found.ids) & set(images.ids) and found.ids[0].endswith("image 0")
    with pytest.raises(BadData, match="maps of 3 images, and 2 different"):
        panels_of(maps_record(["a", "a", "b"]))


def pages_record():
    from mechvis.explorer.pictures import picture

    file = np.frombuffer(picture(np.zeros((4, 4, 3), np.uint8), 4), np.uint8)
    return Record(
        kind="latent_pages",
        title="Latents",
        tables={
            "latents": pl.DataFrame({"latent": [4, 9], "frequency": [0.5, 0.1], "frequency_low": [0.4, 0.0],
                                     "frequency_high": [0.6, 0.2], "max": [2.0, 1.0],
                                     "top_class": ["x", None]}),
            "examples": pl.DataFrame({"latent": [4, 4, 9], "kind": ["top", "quantile", "top"], "image": [20, 10, 20],
                                      "value": [2.0, 1.0, 1.0], "peak": [2.0, 0.5, 1.0]}),
            "images": pl.DataFrame({"image": [10, 20], "id": ["a", "b"], "class": ["x", "y"]}),
            "texts": pl.DataFrame({"latent": [4, 4, 9], "text": ["worse", "best", "chance"], "rank": [1, 0, 0],
                                   "above_chance": [True, True, False]}),
        },
        arrays={"maps": np.arange(12, dtype=np.uint8).reshape(3, 4), "pictures": np.tile(file, 2),
                "picture_offsets": np.array([0, len(file), 2 * len(file)])},
        facts={"grid": [2, 2]},
        caveats=("Few images.",),
        words={"frequency": "share of images"},
    )  # fmt: skip


def test_pages_of_latents():
    pictures, latents = panels_of(pages_record())
    assert isinstance(latents, Latents) and latents.sections[0].title == "How far to believe it"
    assert (
        latents.latent.tolist() == [0, 0, 1]
        and latents.image.tolist() == [1, 0, 1]
        and latents.top.tolist() == [True, False, True]
    )
    assert latents.columns["frequency_low"] == [0.4, 0.0]
    assert latents.columns["label"] == ["best", ""], "the best text that is above chance"
    assert pictures.ids == ("a", "b") and pictures.labels == ("x", "y") and pictures.files[0] == pictures.files[1]
    broken = pages_record()
    del broken.arrays["pictures"]
    with pytest.raises(BadData, match="'Latents' have no 'pictures'"):
        panels_of(broken)


CARD = {
    "object_kind": "attribution", "method": {"name": "grad_cam"},
    "gates": [{"id": "G1", "name": "no-op", "status": "pass"},
              {"id": "G3", "name": "random", "status": "fail", "statistic": 0.9, "threshold": 0.6, "rule": "<",
               "why": "rank correlation"},
              {"id": "G2", "name": "sums", "status": "not applicable"}],
    "measures": [{"id": "saco", "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "control": "", "direction": "high"},
                 {"id": "saco", "value": None, "control": "random"}],
    "warnings": ["few images"], "scope": "Tested on little.",
}  # fmt: skip


def test_cards_by_their_fields():
    card = panels_of(CARD)[0]
    assert card.name == "attribution by grad cam"
    assert [(gate.name, gate.passed) for gate in card.gates] == [
        ("G3 random", False),
        ("G1 no-op", True),
        ("G2 sums", None),
    ]
    assert (card.gates[0].statistic, card.gates[0].threshold) == ("0.9", "< 0.6") and card.gates[
        2
    ].said == "not applicable"
    assert card.measures[0] == {"measure": "saco", "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "better": "high"}
    assert card.measures[1]["control"] == "random" and card.measures[1]["value"] is None
    assert card.scope == "Tested on little. few images"
    assert card_in({"gates": "x", "measures": []}) is None and card_in(3) is None


def test_what_brings_its_own_panels():
    class Own:
        def explorer_panels(self):
            return [Page(name="mine", sections=(Section("s", [Text("t")]),))]

    class Wrong:
        def explorer_panels(self):
            return ["page"]

    class Sections:
        title = "By sections"

        def table(self, name):
            raise AssertionError("a table that has to be named is not asked for")

        def report_sections(self):
            return [Section("s", [])]

    assert isinstance(Own(), Explorable) and panels_of(Own())[0].name == "mine"
    assert panels_of(Sections())[0].name == "By sections"
    with pytest.raises(BadData, match="gave a str, which is no panel"):
        panels_of(Wrong())
    with pytest.raises(BadData, match="knows nothing to show of a int"):
        panels_of(3)
    with pytest.raises(BadData, match="nothing to explore"):
        gather([])


def test_galleries_are_joined_by_id_and_the_first_that_knows_wins():
    first = Pictures(ids=("a", "b"), files=(b"1", None), labels=("x", None), numbers={"p": np.array([0.5, np.nan])})
    second = Pictures(ids=("b", "c"), files=(b"2", b"3"), labels=("y", "z"), numbers={"p": np.array([0.25, 0.75])})
    found = merged([first, second], named=[("d",)])
    assert found.ids == ("a", "b", "c", "d") and found.files == (b"1", b"2", b"3", None)
    assert found.labels == ("x", "y", "z", None) and found.groups == ()
    assert np.array_equal(found.numbers["p"], [0.5, 0.25, 0.75, np.nan], equal_nan=True)
    assert merged([]) is None


def test_attention_of_two_models_is_refused(study):
    attention = study["panels"][1]
    with pytest.raises(BadData, match="attention of one model"):
        gather([attention, attention])
    assert isinstance(gather(study["panels"]).graphs[0], Graph)
