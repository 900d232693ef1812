"""Single directions of heads taken out by what texts say about them, where ablation takes whole heads (SITH, **N**).

A head that is about a cue may do other things too. Its singular directions (:mod:`probes.textspan.sith`) are explained
one by one; those whose best text is about the property are rescaled, the others stay. The control is the same number
of directions of the same heads, drawn at random.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechvis.data.text_bank import TextBank, text_bank
from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, unknown
from probes.textspan.coherent import LAM, K
from probes.textspan.head_sites import head_sites
from probes.textspan.reading import tower_of
from probes.textspan.sith import rescaled, sith


def property_directions(
    clip: Any,
    bank: str | Path | TextBank,
    heads: Sequence[str],
    about: str,
    *,
    directions: int = 16,
    k: int = K,
    lam: float = LAM,
    center: bool = True,
    fold: bool = True,
    cache: str | Path | None = None,
) -> dict[str, list[int]]:
    """Which singular directions of some heads are about a property, by the first text of their better sign.

    Args:
        clip: a wrapped CLIP model.
        bank: the texts with their properties.
        heads: names of heads of blocks.
        about: the property.
        directions: how many of each head's directions are looked at, strongest first.
        k, lam, center, fold, cache: see :func:`probes.textspan.sith.sith`.

    Returns:
        Head -> ranks, 0 for the largest singular value.

    Raises:
        UnknownName: no such head or property.
        BadData: no head, or no direction is about it.

    Example:
        >>> property_directions(clip, "scenes", ["L1H2"], "background")                    # doctest: +SKIP
        {'L1H2': [0, 1, 3, 4]}
    """
    tower, bank = tower_of(clip), text_bank(bank)
    sites = {name: site for name, site in head_sites(tower).items() if site[0].startswith("blocks.")}
    if not heads:
        raise BadData("no head was named.")
    for head in heads:
        if head not in sites:
            raise unknown("head", head, sites)
    bank.about(about)
    layers = sorted({sites[head][2] for head in heads})
    settings = {"k": k, "lam": lam, "center": center, "fold": fold, "cache": cache}
    table = sith(clip, bank, layers=layers, directions=directions, **settings).table
    found: dict[str, list[int]] = {}
    for head in dict.fromkeys(heads):
        best = table.filter(head=head).sort("rank", "fit", descending=[False, True]).unique("rank", keep="first")
        ranks = [row["rank"] - 1 for row in best.iter_rows(named=True) if row["properties"][:1] == [about]]
        found[head] = sorted(ranks)
    if not any(found.values()):
        raise BadData(f"none of the first {directions} directions of {', '.join(found)} is about {about!r}.")
    return found


def direction_edits(clip: Any, chosen: dict[str, list[int]], *, factor: float = 0.0, fold: bool = True) -> list[Edit]:
    """Edits that rescale directions of heads.

    Args:
        clip: a wrapped CLIP model.
        chosen: head -> ranks, from :func:`property_directions` or :func:`random_directions`.
        factor: 0 takes them out.
        fold: as they were found.

    Returns:
        Edits for `clip.vision.run(pixels, edits=...)`.

    Raises:
        UnknownName, OutOfRange: no such head or rank.

    Example:
        >>> edits = direction_edits(clip, property_directions(clip, "scenes", heads, "background"))  # doctest: +SKIP
    """
    tower = tower_of(clip)
    sites = head_sites(tower)
    for head in chosen:
        if head not in sites:
            raise unknown("head", head, sites)
    return [
        rescaled(tower, sites[head][2], sites[head][1], dict.fromkeys(ranks, factor), fold=fold)
        for head, ranks in chosen.items()
        if ranks
    ]


def random_directions(chosen: dict[str, list[int]], *, directions: int = 16, seed: int = 0) -> dict[str, list[int]]:
    """The control: for each head as many of its first directions, drawn at random.

    Raises:
        OutOfRange: more chosen than there are to draw from.

    Example:
        >>> len(random_directions({"L1H2": [0, 3]})["L1H2"])
        2
    """
    generator = np.random.default_rng(seed)
    for head, ranks in chosen.items():
        if len(ranks) > directions:
            raise OutOfRange(f"{len(ranks)} directions of {head} are chosen, and only {directions} to draw from.")
    return {head: sorted(generator.permutation(directions)[: len(ranks)].tolist()) for head, ranks in chosen.items()}
