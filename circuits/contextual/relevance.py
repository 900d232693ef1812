"""How much of a component stems from another: relevance from sources to targets (methods2.md 15.3 step 3; CD-T **C**).

    found = relevance_to(model, images, sources="heads", targets=["L3H1", "L3H2"])

This is what contextual decomposition is for: every source against every target that comes after it, in one pass of
each source. (For sources against the output, ablation is as cheap and more accurate; methods2.md 15.2.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from circuits.contextual.passes import Setup, check_shapes, decompose_all, setup
from circuits.contextual.rules import Rules
from circuits.contextual.targets import Target, before, measure, targets_of, token_mask
from mechvis.errors import BadData, unknown
from mechvis.results import Result

Normalise = Literal["layer"] | None


def relevance_to(
    model: Any,
    images: Any,
    sources: Any = "heads",
    targets: Any = "heads",
    *,
    at: Literal["z", "q", "k", "v"] = "z",
    tokens: str | Sequence[int] | None = None,
    normalise: Normalise = "layer",
    rules: str | Rules = "default",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "mean_positional",
    reference: Any = None,
    source: Any = None,
    groups: Any = None,
    layers: Iterable[int] | None = None,
    paths: Literal["all", "direct"] = "all",
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Result:
    """Relevance of every source to every target that comes after it; one row per pair.

    Args:
        model: a wrapped model; it needs no head.
        images: an `ImageSet`, pixels, or `circuits.pairs.Pairs`.
        sources: as for :func:`contextual`.
        targets: names (`L1H2`, `L1H2.q`, `L1MLP`, `L1MLP.pre`, `L1.resid_mid`, `pool H0`), sites, or a word (`heads`,
            `mlp_out`, `pool_heads`).
        at: which activation of a head is meant where its name does not say it.
        tokens: look at the targets at these tokens only: `cls`, `registers`, `prefix`, `patches`, or indices. In the
            last block only the tokens that the read-out reads matter, and this is how to say it.
        normalise: `layer`: the metric `relevance` is `ratio` divided by its sum over the sources of the same block, so
            that late blocks do not win by being near (**C**); it says nothing where a block has one source only.
            None: no such metric.
        rules, edit, reference, source, groups, layers, paths, batch_size, seed, progress, allow_overlap: as for
            :func:`contextual`.

    Returns:
        Result: metrics `relevance` (with `normalise`), `ratio` (between 0 and 1) and `projected` (signed; both in
        :mod:`circuits.contextual.targets`), with columns `source`, `target`, `at`. The first two cannot be negative,
        so that they differ from 0 is no finding, whatever `p` says: compare them with each other, or look at
        `projected`.

    Raises:
        BadData: no source comes before a target. Further as :func:`contextual`.

    Example:
        >>> found = relevance_to(model, images, "heads", ["L1H0", "L1H1"])                         # doctest: +SKIP
        >>> found.top(3, metric="projected")                                                       # doctest: +SKIP
    """
    if normalise not in ("layer", None):
        raise unknown("way to normalise", normalise, ("layer", "None"))
    listed = targets_of(model, targets, at=at)
    ready = setup(
        model,
        images,
        sources,
        rules=rules,
        edit=edit,
        reference=reference,
        source=source,
        groups=groups,
        layers=layers,
        labels="predicted",
        paths=paths,
        batch_size=batch_size,
        seed=seed,
        allow_overlap=allow_overlap,
    )
    reach = reachable(model, ready, listed)
    if missed := [target.name for target, row in zip(listed, reach, strict=True) if not row.any()]:
        raise BadData(f"no source comes before the target {missed[0]!r}; its relevance is 0 by construction.")
    ratio, projected = relevances(model, ready, listed, tokens=tokens, progress=progress)
    pairs = np.argwhere(reach)
    values = {"ratio": ratio, "projected": projected}
    if normalise == "layer":
        values = {"relevance": by_layer(ratio, [source.layer for source in ready.sources], reach), **values}
    rows = []
    for t, s in pairs:
        one, target = ready.sources[s], listed[t]
        columns = {f"source_{key}" if key == "group" else key: value for key, value in one.row.items()}
        names = {"source": one.name, "target": target.node, "at": target.at}
        rows.append({"unit": f"{one.name}->{target.name}", **columns, **names})
    return Result.from_values(
        "contextual_relevance",
        "Relevance of sources to components",
        rows,
        {name: value[tuple(pairs.T)] for name, value in values.items()},
        images=ready.prepared.image_table(),
        provenance=ready.provenance(
            targets=[target.name for target in listed],
            normalise=normalise,
            tokens=tokens if tokens is None or isinstance(tokens, str) else list(tokens),
        ),
        seed=seed,
    )


def relevances(
    model: Any, ready: Setup, targets: Sequence[Target], *, tokens: str | Sequence[int] | None, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`ratio` and `projected`, each `[target source image]`; 0 for a source that comes after the target.

    Args:
        model: a wrapped model.
        ready: what to decompose.
        targets: where to look.
        tokens: look at these tokens only.
        progress: show a progress bar.
    """
    shape = (len(targets), len(ready.sources), ready.n_images)
    ratio, projected = np.zeros(shape), np.zeros(shape)
    if tokens is not None and not isinstance(tokens, str):
        tokens = list(tokens)
    if tokens is not None and (late := [t.name for t in targets if model.graph[t.site].layer is None]):
        raise BadData(f"tokens= is about the stream, and the target {late[0]!r} comes after it.")
    at_site: dict[str, list[int]] = {}
    for place, target in enumerate(targets):
        at_site.setdefault(target.site, []).append(place)

    def see(site: str, total: Tensor, beta: Tensor, rows: Sequence[int], part: range) -> None:
        check_shapes(beta, total, site)
        mask = None if tokens is None else token_mask(model.parts.prefix, total.shape[1], tokens).to(total.device)
        for by_head in (True, False):
            places = [place for place in at_site[site] if (targets[place].head is not None) == by_head]
            if places:
                found = measure(total, beta, by_head=by_head, tokens=mask)
            for place in places:
                for array, values in zip((ratio, projected), found, strict=True):
                    array[place, list(rows), part.start : part.stop] = values[..., targets[place].head or 0].cpu()

    decompose_all(ready, tuple(at_site), see, progress=progress, what="relevance")
    reach = reachable(model, ready, targets)[..., None]
    return ratio * reach, projected * reach


def reachable(model: Any, ready: Setup, targets: Sequence[Target]) -> np.ndarray:
    """Which sources come before which targets, bool `[target source]`."""
    return np.array([[before(model, source, target) for source in ready.sources] for target in targets])


def by_layer(ratio: np.ndarray, layers: Sequence[int], reach: np.ndarray) -> np.ndarray:
    """`[... source image]` divided by its sum over the sources of the same layer; 0 where that sum is 0.

    Args:
        ratio: `[target source image]`.
        layers: layer of each source.
        reach: which sources come before which targets; the others are left out of the sums.

    Example:
        >>> by_layer(np.array([[[1.0], [3.0], [5.0]]]), [0, 0, 1], np.ones((1, 3), bool))[0, :, 0].tolist()
        [0.25, 0.75, 1.0]
    """
    numbers = np.asarray(layers)
    total = np.zeros_like(ratio)
    for layer in set(layers):
        same = numbers == layer
        total[:, same] = (ratio[:, same] * reach[:, same, None]).sum(1, keepdims=True)
    return np.divide(ratio, total, out=np.zeros_like(ratio), where=total > 0)
