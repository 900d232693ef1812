"""A thousand images and ten thousand latents: the file stays below 20 MB, opens quickly, and follows the pointer.

Bounds are wide enough for a busy machine; the times themselves are printed with `-s`.
"""

import numpy as np
import pytest

from mechvis.explorer import explore, panels
from mechvis.explorer.packing import shares
from mechvis.explorer.pictures import picture

N, LATENTS, PER, SIDE, LAYERS, HEADS = 1000, 10_000, 16, 8, 4, 4

HOVER = """async () => {
  const stage = document.getElementById("stage"), box = stage.getBoundingClientRect(), times = [];
  for (let k = 0; k < 64; k++) {
    const [across, down] = [(k % 8 + .5) / 8, (Math.floor(k / 8) + .5) / 8];
    const where = { clientX: box.left + across * box.width, clientY: box.top + down * box.height };
    const start = performance.now();
    stage.dispatchEvent(new PointerEvent("pointermove", where));
    times.push(performance.now() - start);
    await new Promise((go) => requestAnimationFrame(go));
  }
  return times.sort((a, b) => a - b)[32];
}"""
NEXT = """async ([list, panel]) => {
  const times = [], keys = document.getElementById(list), shown = document.getElementById(panel);
  for (let k = 0; k < 12; k++) {
    const was = shown.dataset.ready, start = performance.now();
    keys.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    while (shown.dataset.ready === was) await new Promise((go) => setTimeout(go, 1));
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[6];
}"""


@pytest.fixture(scope="module")
def big_file(tmp_path_factory):
    generator = np.random.default_rng(0)
    ids = tuple(f"scenes/7/{i:06d}" for i in range(N))
    tokens = SIDE * SIDE + 1
    # Noisy pictures, of about as many bytes as photographs of this size.
    files = tuple(picture(image, 64) for image in generator.integers(60, 190, (N, 64, 64, 3)).astype(np.uint8) // 8 * 8)
    gallery = panels.Pictures(
        ids=ids, files=files, labels=tuple(f"class {i % 8}" for i in range(N)),
        predictions=tuple(f"class {i % 7}" for i in range(N)), numbers={"confidence": generator.random(N)},
    )  # fmt: skip
    full = 90
    packed = [
        shares(generator.dirichlet(np.full(tokens, 0.3), (full, HEADS, tokens)).astype(np.float32))
        for _ in range(LAYERS)
    ]
    rows, top = shares(generator.dirichlet(np.full(tokens, 0.3), (N, LAYERS * HEADS)))
    attention = panels.Attention(
        layers=tuple(range(LAYERS)), heads=(HEADS,) * LAYERS, prefix=("cls",), grid=(SIDE, SIDE), ids=ids[:full],
        patterns={i: p for i, (p, _) in enumerate(packed)}, largest={i: m for i, (_, m) in enumerate(packed)},
        read_ids=ids, read=rows, read_largest=top,
    )  # fmt: skip
    n = LATENTS * PER
    down, across = np.mgrid[:SIDE, :SIDE].reshape(2, 1, -1)
    middle = generator.uniform(0, SIDE, (2, n, 1))
    blobs = np.exp(
        -((down - middle[0]) ** 2 + (across - middle[1]) ** 2) / (2 * generator.uniform(0.5, 2, (n, 1)) ** 2)
    )
    heat = np.rint(255 * np.where(blobs > 0.15, blobs, 0)).astype(np.uint8)
    latents = panels.Latents(
        name="planted latents",
        columns={"latent": list(range(LATENTS)), "frequency": generator.random(LATENTS).tolist(),
                 "max": generator.random(LATENTS).tolist(),
                 "label": [f"label {i % 97} of {i % 89}" for i in range(LATENTS)]},
        grid=(SIDE, SIDE), latent=np.repeat(np.arange(LATENTS), PER), image=generator.integers(0, N, n),
        value=generator.random(n), peak=generator.random(n), top=np.tile(np.arange(PER) < 10, LATENTS), maps=heat,
        ids=ids,
    )  # fmt: skip
    return explore(tmp_path_factory.mktemp("big") / "big.html", gallery, attention, latents)


@pytest.mark.slow
def test_size_opening_and_following(watch, big_file):
    assert big_file.size <= 20_000_000 and big_file.counts["latents"] == LATENTS and big_file.counts["images"] == N
    page = watch.open(big_file.path)
    opened = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    page.evaluate("location.hash = '#images'")
    page.wait_for_selector("#stage[data-ready]")
    hover = page.evaluate(HOVER)
    image = page.evaluate(NEXT, ["gallery", "stage"])
    page.evaluate("location.hash = '#latents-0'")
    page.wait_for_selector("#latents-0-panel[data-ready]")
    latent = page.evaluate(NEXT, ["latents-0-list", "latents-0-panel"])
    cells = page.evaluate(
        "document.querySelectorAll('#gallery .cell').length + document.querySelectorAll('.row').length"
    )
    print(
        f"\n{big_file.size / 1e6:.1f} MB; opens in {opened:.0f} ms, hover {hover:.1f} ms, next image {image:.0f} ms, "
        f"next latent {latent:.0f} ms"
    )
    assert opened < 8000 and hover < 20 and image < 1000 and latent < 2000
    assert cells < 200, "only what is in sight exists"
    watch.quiet(big_file.path)
