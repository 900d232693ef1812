"""A circuit in a notebook: counts, the largest edges, a small drawing of what is kept, and words that stay words."""

from html.parser import HTMLParser

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from mechvis.show.circuit import circuit

GRAPH = EdgeGraph((2, 2))
HOSTILE = '<script>x</script>" onload="y'


class Reader(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.said.append(data)


def made(**more) -> Circuit:
    scores = np.full(GRAPH.shape, np.nan)
    edges = {"embed->L0H1.v": 0.5, "L0H1->L1H0.q": -2.0, "L1H0->out": 1.0}
    for edge, score in edges.items():
        scores[GRAPH.edge(edge)] = score
    return Circuit.of(GRAPH, edges, scores=scores, **more)


def test_it_says_how_large_it_is_and_draws_what_is_kept():
    page = made(title="EAP", model={"name": "scenes-vit"})._repr_html_()
    said = " ".join(" ".join(Reader(page).said).split())
    assert f"3 of {GRAPH.n_edges} ({3 / GRAPH.n_edges:.1%})" in said and "3 of 7" in said and "scenes-vit" in said
    # Largest first.
    assert said.index("L0H1->L1H0.q -2") < said.index("L1H0->out +1") < said.index("embed->L0H1.v +0.5")
    tags = [tag for tag, _ in Reader(page).tags]
    assert tags.count("line") == 3 and tags.count("rect") == 4
    # From the embedding below to the read-out above.
    below, above = (
        float(page.split(f">{name}</text>")[0].rsplit(' y="', 1)[1].split('"')[0]) for name in ("embed", "out")
    )
    assert below > above
    assert "not measured here" in said


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (0.93, "0.930"),
        ({"value": 0.93, "low": 0.9, "high": 0.96}, "0.930 [0.900, 0.960]"),
        ("good", "not measured here"),
    ],
)
def test_faithfulness_is_shown_where_it_is_known(known, says):
    assert says in made(provenance={"faithfulness": known})._repr_html_()


def test_an_empty_circuit_and_a_large_one_are_shown():
    empty = Circuit(graph=GRAPH, kept=np.zeros(GRAPH.shape, bool))
    assert "0 of" in circuit(empty) and "<svg" not in circuit(empty)
    large = EdgeGraph((12,) * 6)
    page = circuit(Circuit(graph=large, kept=large.allowed))
    assert len(page) < 200_000 and page.count("<line") == 60 and "the 60 largest of" in page


def test_hostile_words_stay_words():
    harmless = Reader(circuit(made(title="harmless", model={"name": "harmless"})))
    hostile = Reader(circuit(made(title=HOSTILE, model={"name": HOSTILE})))
    assert hostile.tags == harmless.tags and sum(HOSTILE in said for said in hostile.said) == 2
