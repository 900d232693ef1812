"""All layers in one pass against one layer at a time: forward passes counted, seconds, and that the answers agree."""

import time
from typing import Any

import numpy as np

from mechvis.errors import FailedCheck
from probes.features import collect
from probes.linear.layers import probe_layers


def one_pass_against_many(
    model: Any,
    images: Any,
    sites: str = "blocks.*.hook_resid_post",
    *,
    tokens: str = "read",
    repeats: int = 3,
    fit: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Features (and probes) of all layers from one pass, and from one pass per layer.

    The slow way stops each pass at its layer, as a careful user would; the count of blocks that were run says what that
    saves, and `full_passes` what passes to the end would have cost.

    Args:
        model: a wrapped image tower.
        images: labelled images.
        sites: a pattern of several sites.
        tokens: one choice.
        repeats: the fastest of so many is taken.
        fit: also fit the probes (once per layer either way), and time both together.
        seed: of the probes' split.

    Returns:
        Seconds of both ways (`one_pass_s`, `per_layer_s`), their `ratio`, passes over the data (`one_pass`,
        `per_layer`), blocks run per image, with `fit` the seconds of the whole analysis; `largest_difference` of the
        features.

    Raises:
        FailedCheck: the two ways disagree.

    Example:
        >>> one_pass_against_many(model, images)["ratio"]                                          # doctest: +SKIP
    """
    names = model.graph.match([sites])
    depth = [model.graph[name].layer for name in names]

    def together() -> dict[str, np.ndarray]:
        return dict(collect(model, images, names, tokens=tokens, progress=False))

    def apart() -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in names:
            found |= collect(model, images, [name], tokens=tokens, progress=False)
        return found

    seconds: dict[str, float] = {}
    features: dict[str, dict[str, np.ndarray]] = {}
    for _ in range(repeats):
        for word, way in (("one_pass_s", together), ("per_layer_s", apart)):
            start = time.perf_counter()
            features[word] = way()
            seconds[word] = min(seconds.get(word, np.inf), time.perf_counter() - start)
    gap = max(
        float(np.abs(features["one_pass_s"][name] - features["per_layer_s"][name]).max())
        for name in features["one_pass_s"]
    )
    largest = max(float(np.abs(rows).max()) for rows in features["one_pass_s"].values())
    # Passes that stop elsewhere may round the last bit differently.
    if gap > 1e-5 * largest:
        raise FailedCheck(f"features of one pass and of one pass per layer differ by {gap:.1e} of {largest:.1e}.")
    found = {
        **seconds,
        "ratio": seconds["per_layer_s"] / seconds["one_pass_s"],
        "one_pass": 1,
        "per_layer": len(names),
        "one_pass_blocks": max(depth) + 1,
        "per_layer_blocks": sum(layer + 1 for layer in depth),
        "full_passes_blocks": len(names) * model.cfg.n_layers,
        "largest_difference": gap,
        "images": len(images),
    }
    if fit:
        start = time.perf_counter()
        kept = collect(model, images, names, tokens=tokens, progress=False)
        probe_layers(kept, code=False, seed=seed, progress=False, weight_decays=(1e-2,))
        found["probing_one_pass_s"] = time.perf_counter() - start
        found["probing_per_layer_s"] = found["probing_one_pass_s"] - seconds["one_pass_s"] + seconds["per_layer_s"]
    return found
