"""Tables of pages, from sums and best entries: pure functions."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int, UInt8

from sae.dashboards.best import EMPTY, Best
from sae.dashboards.codes import Rows
from sae.dashboards.counts import Counts, wilson
from sae.dashboards.known import Known

EXAMPLES = ("latent", "kind", "rank", "image", "value", "token", "type", "peak", "quantile")
MOST = 12
"""Classes, and groups, that are listed per latent."""


def examples(
    number: Int[np.ndarray, " latent"],
    top: Best,
    sample: Best,
    n_quantile: int,
    rows: Rows,
) -> pl.DataFrame:
    """The top images of each latent, then some from its whole range, high to low.

    The sample's images that are not among the top ones are parted into `n_quantile` equal parts by their value, and the
    middle of each part is shown; all of them, if there are no more. `quantile` is the share of the sample (top images
    included) on which the latent is not stronger than here.

    Args:
        number: of each latent.
        top: strongest images.
        sample: images drawn from those on which it fires.
        n_quantile: how many at most.
        rows: what rows are about.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("place", "quantile", "rank", "image", "value", "row")}

    def add(place: int, rank: np.ndarray, best: Best, chosen: np.ndarray, quantile: np.ndarray) -> None:
        for name, column in (
            ("place", np.full(len(chosen), place)), ("rank", rank), ("image", best.image[place, chosen]),
            ("value", best.value[place, chosen]), ("row", best.row[place, chosen]), ("quantile", quantile),
        ):  # fmt: skip
            found[name].append(column)

    for place in range(len(number)):
        own = np.flatnonzero(top.image[place] != EMPTY)
        add(place, own, top, own, np.full(len(own), np.nan))
        held = np.flatnonzero(sample.image[place] != EMPTY)
        pool = held[~np.isin(sample.image[place, held], top.image[place, own])]
        # High to low; of equal values the earlier image first.
        pool = pool[np.lexsort((sample.image[place, pool], -sample.value[place, pool]))]
        if len(pool) > n_quantile:
            pool = pool[((np.arange(n_quantile) + 0.5) * len(pool) / max(n_quantile, 1)).astype(np.int64)]
        values = np.sort(sample.value[place, held])
        share = np.searchsorted(values, sample.value[place, pool], side="right") / max(len(values), 1)
        add(place, np.arange(len(pool)), sample, pool, share)
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    row = columns["row"].astype(np.int64)
    types = np.array([*rows.types, ""], dtype=object)
    return pl.DataFrame(
        {
            "latent": number[columns["place"].astype(np.int64)],
            "kind": np.where(np.isnan(columns["quantile"]), "top", "quantile").astype(object),
            "rank": columns["rank"].astype(np.int64),
            "image": columns["image"].astype(np.int64),
            "value": columns["value"].astype(np.float64),
            "token": rows.token[row] if len(row) else row,
            "type": types[row],
            "quantile": columns["quantile"].astype(np.float64),
        },
        schema_overrides={"kind": pl.String, "type": pl.String},
    ).with_columns(pl.col("quantile").fill_nan(None))


def latents(
    number: Int[np.ndarray, " latent"],
    counts: Counts,
    known: Known,
    shown: pl.DataFrame,
    maps: UInt8[np.ndarray, "example patch"],
    grid: tuple[int, int],
) -> pl.DataFrame:
    """One row per latent; what is not known of a silent latent, or without labels, is empty."""
    fires, n = counts["fired_images"].astype(np.int64), counts.images
    frequency = wilson(fires, np.full(len(fires), n))
    mean = counts.means()
    with np.errstate(invalid="ignore", divide="ignore"):
        columns: dict[str, object] = {
            "latent": number,
            "fires": fires,
            "images": np.full(len(fires), n),
            **_three("frequency", frequency),
            "density": counts["fired_rows"] / counts.rows,
            "prefix": counts["prefix_rows"] / counts["fired_rows"],
            **_three("mean", mean),
            "max": np.where(fires > 0, counts["largest"], np.nan),
        }
        for kind, names, seen in (
            ("class", known.classes, counts.class_images), ("group", known.group_names, counts.group_images)
        ):  # fmt: skip
            if not names:
                continue
            fired, mass = counts[f"{kind}_fired"], counts[f"{kind}_mass"]
            best = fired.argmax(1)
            at = np.arange(len(best)), best
            columns[f"top_{kind}"] = [names[b] if f else None for b, f in zip(best, fires, strict=True)]
            columns |= _three(f"{kind}_share", wilson(fired[at], fires))
            columns[f"{kind}_base"] = np.where(fires > 0, seen[best] / n, np.nan)
            if kind == "class":
                columns["class_mass"] = mass[at] / mass.sum(1)
                columns["class_share_of_top"] = _purity(number, shown, known.labels)
    columns |= _moran(number, shown, maps, grid)
    table = pl.DataFrame(columns, schema_overrides={f"top_{kind}": pl.String for kind in ("class", "group")
                                                    if f"top_{kind}" in columns})  # fmt: skip
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    return table.with_columns(pl.col(floats).fill_nan(None))


def breakdowns(number: Int[np.ndarray, " latent"], counts: Counts, known: Known) -> dict[str, pl.DataFrame]:
    """Tables `classes` and `groups`: of each latent the classes on which it fires most, commonest first."""
    found = {}
    for kind, plural, names, seen in (
        ("class", "classes", known.classes, counts.class_images),
        ("group", "groups", known.group_names, counts.group_images),
    ):
        if not names:
            continue
        fired, mass = counts[f"{kind}_fired"], counts[f"{kind}_mass"]
        order = np.argsort(-fired, axis=1, kind="stable")[:, :MOST]
        row, rank = np.nonzero(np.take_along_axis(fired, order, 1) > 0)
        which = order[row, rank]
        own = fired[row, which]
        found[plural] = pl.DataFrame(
            {
                "latent": number[row],
                kind: [names[j] for j in which],
                "fires": own,
                "share": own / np.maximum(counts["fired_images"][row], 1),
                **_three("rate", wilson(own, seen[which])),
                "images": seen[which],
                "mean": mass[row, which] / np.maximum(own, 1),
            },
            schema_overrides={kind: pl.String},
        )
    return found


def images(known: Known, pictured: Int[np.ndarray, " picture"]) -> pl.DataFrame:
    """Images that are examples, with what is known of them and the position of their picture."""
    columns: dict[str, object] = {"image": pictured, "id": [known.ids[i] for i in pictured]}
    if known.labels is not None:
        columns["class"] = [known.classes[known.labels[i]] for i in pictured]
    if known.groups is not None:
        columns["group"] = [known.group_names[known.groups[i]] for i in pictured]
    text = {name: pl.String for name in ("id", "class", "group") if name in columns}
    return pl.DataFrame({**columns, "picture": np.arange(len(pictured))}, schema_overrides=text)


def _purity(number: np.ndarray, shown: pl.DataFrame, labels: np.ndarray | None) -> Float[np.ndarray, " latent"]:
    """Share of the top images that have their commonest class."""
    top = shown.filter(pl.col("kind") == "top")
    found = np.full(len(number), np.nan)
    place = {int(latent): i for i, latent in enumerate(number)}
    for latent, some in top.group_by("latent", maintain_order=True).agg("image").iter_rows():
        found[place[latent]] = np.bincount(labels[np.array(some)]).max() / len(some)
    return found


def _moran(number: np.ndarray, shown: pl.DataFrame, maps: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Moran's I of the top images' maps, mean over those that vary, with a t interval."""
    from scipy.stats import t

    from sae.evaluation.spatial import moran

    if grid[0] * grid[1] < 2:
        return {}
    if not len(maps):
        nothing = np.full(len(number), np.nan)
        return {**_three("moran", (nothing, nothing, nothing)), "moran_n": np.zeros(len(number), np.int64)}
    top = (shown["kind"] == "top").to_numpy()
    latent = shown["latent"].to_numpy()[top]
    value = np.concatenate(
        [
            moran(torch.from_numpy(part).unflatten(1, grid)).numpy()
            for part in np.split(maps[top], range(4096, int(top.sum()), 4096))
        ]
    )
    known = np.isfinite(value)
    place = {int(own): i for i, own in enumerate(number)}
    at = np.array([place[int(own)] for own in latent[known]], np.int64)
    n = np.bincount(at, minlength=len(number))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(at, value[known], minlength=len(number)) / n
        squares = np.bincount(at, (value[known] - mean[at]) ** 2, minlength=len(number))
        half = t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(squares / (n - 1) / n)
    half[n < 2] = np.nan
    return {**_three("moran", (mean, mean - half, mean + half)), "moran_n": n}


def _three(name: str, found: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
