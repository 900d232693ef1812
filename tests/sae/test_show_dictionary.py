"""A dictionary in a notebook: what it reads, how large and sparse it is, how it was trained; words stay words."""

from html.parser import HTMLParser

import torch

from mechvis.show.dictionary import dictionary
from sae.architectures import TopK
from sae.dictionary import start

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

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def made(site="blocks.2.hook_resid_post", **known):
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return start(TopK(n_latents=16, k=2), {site: rows}, provenance=known)


def test_it_says_what_it_is_and_how_it_was_trained():
    found = made(
        training={"tokens": 4096, "lr": None}, model={"name": "scenes-vit"}, measured={"dead": 0.0625, "fvu": 0.1}
    )
    said = Reader(found._repr_html_()).text
    for part in (
        "topk autoencoder", "blocks.2.hook_resid_post (8)", "latents 16 (2 per dimension that is read)", "k 2",
        f"{sum(p.numel() for p in found.parameters())} parameters", "dead 6.25%", "fvu 0.1", "tokens 4096",
        "model scenes-vit",
    ):  # fmt: skip
        assert part in said, part
    assert "lr" not in said.split("training")[1] and "writes" not in said


def test_a_transcoder_says_what_it_writes_and_nothing_known_is_said():
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = start(TopK(n_latents=16, k=2), {"ln2": rows, "mlp_out": rows[:, :4]}, reads="ln2", writes="mlp_out")
    said = Reader(dictionary(found)).text
    assert "reads ln2 (8) writes mlp_out (4)" in said and "nothing is known of its training" in said


def test_hostile_words_stay_words_and_the_page_is_small():
    harmless = Reader(dictionary(made("site", time="harmless", model={"name": "harmless"})))
    page = dictionary(made(HOSTILE, time=HOSTILE, model={"name": HOSTILE}))
    assert Reader(page).tags == harmless.tags and HOSTILE in Reader(page).text and len(page) < 20_000
