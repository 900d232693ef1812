"""What the page's script reads, read again from the format's own words: it is what went in.

This reader is written from the table in `mechvis/explorer/content.py`, not from the writer.
"""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mechvis.explorer import explore
from mechvis.explorer.packing import unpacked


def block(html: str, id: str) -> str:
    return re.search(rf'<script type="[a-z/]+" id="{id}">([^<]*)</script>', html)[1]


class Reader:
    """An explorer's file, decoded."""

    def __init__(self, html: str):
        self.html, self.lines = html, block(html, "chunks").split("\n")
        self.pictures = block(html, "pictures").split("\n")
        self.images = json.loads(block(html, "data-images"))

    def of(self, id: str):
        return json.loads(block(self.html, id))

    def chunk(self, line: int) -> bytes:
        return unpacked(self.lines[line])


@pytest.fixture(scope="module")
def reader(study_file):
    return Reader(study_file.read_text(encoding="utf-8"))


def test_images(reader, study):
    assert reader.images["ids"] == list(study["ids"])
    coded = reader.images["prediction"]
    assert [coded["names"][i] for i in coded["of"]] == [f"class {i}" for i in (0, 1, 1, 1, 0, 0)]
    assert reader.images["numbers"]["number 0"] == [0.9, 0.8, 0.55, 0.99, 0.7, None]
    for line, image in zip(reader.pictures, study["images"], strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(line)))), image)


def test_attention(reader, study):
    found, heads, tokens = reader.of("data-attention"), 2, 5
    assert set(found["full"]) == {"0", "1", "2", "3"} and found["images"] == list(range(6))
    for image, lines in found["full"].items():
        for layer, line in enumerate(lines):
            data = reader.chunk(line)
            n = heads * tokens * tokens
            part = np.frombuffer(data[:n], np.uint8).reshape(heads, tokens, tokens)
            largest = np.frombuffer(data[n:], "<u2").reshape(heads, tokens, 1)
            assert np.abs(part / 255 * largest / 65535 - study["attention"][int(image), layer]).max() < 0.003
    data = reader.chunk(found["read"][0])
    n = 6 * 4 * tokens
    part = np.frombuffer(data[:n], np.uint8).reshape(6, 4, tokens)
    largest = np.frombuffer(data[n:], "<u2").reshape(6, 4, 1)
    assert np.abs(part / 255 * largest / 65535 - study["attention"][:, :, :, 0].reshape(6, 4, tokens)).max() < 0.003


def test_maps(reader, study):
    found = reader.of("data-maps")
    assert [method["grid"] for method in found["methods"]] == [[2, 2], [4, 4]]
    assert [method["signed"] for method in found["methods"]] == [True, False]
    for image, (line, methods) in found["images"].items():
        data, at = reader.chunk(line), 0
        assert methods == [0, 1]
        for method in methods:
            wanted = study["maps"][method][int(image)].ravel()
            size = np.frombuffer(data[at + len(wanted) : at + len(wanted) + 4], "<f4")[0]
            values = np.frombuffer(data[at : at + len(wanted)], np.int8) / 127 * size
            assert np.abs(values - wanted).max() <= size / 120
            at += len(wanted) + 4
        assert at == len(data)


def test_latents(reader, study):
    found = reader.of("data-latents-0")
    assert found["columns"]["latent"] == {"numbers": [7, 11, 40]} and found["n"] == 3
    assert found["columns"]["frequency"]["numbers"] == [0.5, None, 0.25]
    data, n = reader.chunk(found["examples"]), found["nExamples"]
    image, within = (np.frombuffer(data[4 * n * i : 4 * n * (i + 1)], "<u4") for i in (0, 1))
    value, peak = (np.frombuffer(data[4 * n * i : 4 * n * (i + 1)], "<f4") for i in (2, 3))
    first = np.frombuffer(data[16 * n : 16 * n + 16], "<u4")
    top = np.frombuffer(data[16 * n + 16 :], np.uint8)
    assert first.tolist() == [0, 2, 2, 5] and top.tolist() == [1, 1, 1, 1, 0]
    assert image.tolist() == [row[1] for row in study["examples"]] and np.allclose(
        value, [row[2] for row in study["examples"]]
    )
    for example in range(n):
        line, many = found["images"][str(image[example])]
        part = reader.chunk(line)
        latent = np.frombuffer(part[: 4 * many], "<u4")
        peaks = np.frombuffer(part[4 * many : 8 * many], "<f4")
        maps = np.frombuffer(part[8 * many :], np.uint8).reshape(many, 4)
        assert latent[within[example]] == study["examples"][example][0] and peaks[within[example]] == peak[example]
        assert np.array_equal(maps[within[example]], study["heat"][example])


def test_circuits(reader):
    found = reader.of("data-graph-0")
    names = [node[0] for node in found["nodes"]]
    edges = [(names[a], names[b], entry, score, kept) for a, b, entry, score, kept, _ in found["edges"]]
    assert edges[:2] == [("embed", "L0H1", "v", 2, 1), ("L0H1", "L1H0", "q", -1, 1)]
    assert edges[4] == ("node 0", "out", "", None, 0)


@pytest.mark.slow
def test_a_thousand_images_and_ten_thousand_latents_fit(tmp_path):
    """Numbers alone, with maps as noisy as they come, leave room for pictures and attention."""
    from mechvis.explorer import panels

    generator = np.random.default_rng(0)
    n, per, images = 10_000, 8, 1000
    heat = np.where(generator.random((n * per, 64)) < 0.12, generator.integers(1, 256, (n * per, 64)), 0).astype(
        np.uint8
    )
    ids = tuple(f"image {i}" for i in range(images))
    latents = panels.Latents(
        name="many", columns={"latent": list(range(n)), "frequency": generator.random(n).tolist()}, grid=(8, 8),
        latent=np.repeat(np.arange(n), per), image=generator.integers(0, images, n * per), value=np.ones(n * per),
        peak=generator.random(n * per), top=np.ones(n * per, bool), maps=heat, ids=ids,
    )  # fmt: skip
    found = explore(tmp_path / "many.html", latents)
    assert found.counts["latents"] == n and found.size == (tmp_path / "many.html").stat().st_size < 6_000_000
