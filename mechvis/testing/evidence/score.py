"""`score(method, suite)`: does an attribution method find evidence whose place is known?

1. Open the planted models, draw images, ask about the class that the evidence decides (in `class_specific` about both).
2. The method's map of each question is compared with the truth on the patch grid, by the package's own localisation
   metrics (`mechvis.faithfulness`): AUROC, average precision, hit rate (pointing game, ties share the credit).
3. `contest` is the AUROC of true patches against *decoys* alone: the empty ground is easy, and a class-independent map
   reaches an AUROC of 0.96 in `class_specific` although it is at chance where it counts.
4. Questions about one image are averaged, then images; intervals are bootstrapped over images.

Chance: 0.5 for AUROC and contest, the share of true patches for hit rate, for average precision what a random map gets.
A method that refuses or fails has a row that says why, and no numbers.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.attribute import attribute
from mechvis.attribution.method import Method
from mechvis.attribution.names import method as by_name
from mechvis.errors import BadData, MechvisError
from mechvis.faithfulness.localisation import Auroc, AveragePrecision, PointingGame
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from mechvis.target import Target
from mechvis.testing.evidence.planted import SUITE_VERSION, Asked, Planted, load, seeds_of, variants_of

MEASURES = {"auroc": Auroc(), "ap": AveragePrecision(), "hit": PointingGame()}
_SCORES = (*MEASURES, "contest")


class PlantedScores(Record):
    """How well methods find planted evidence: a row per method, variant and model."""

    KIND = "planted_scores"

    def wide(self, measure: str = "auroc") -> pl.DataFrame:
        """Methods down, variants across, mean over models.

        Args:
            measure: `auroc`, `ap`, `hit` or `contest`.

        Raises:
            BadData: no such measure.
        """
        if measure not in _SCORES:
            raise BadData(f"there is no measure {measure!r}; there are {', '.join(_SCORES)}.")
        return self.table.pivot("variant", index="method", values=measure, aggregate_function="mean")


def score(
    method: str | Method,
    suite: str | Sequence[str] = "all",
    seed: int = 0,
    *,
    models: int | Sequence[int] | None = 0,
    n: int = 64,
) -> PlantedScores:
    """Score one method on planted evidence.

    Args:
        method: a method or its name.
        suite: `A`, `B`, `all`, a variant, or several.
        seed: of the images, and of methods that draw.
        models: which models of each variant (their seeds); None: all that are bundled.
        n: images of each model.

    Returns:
        A row per variant and model with AUROC, average precision, hit rate and contest, each with an interval over
        images, and chance. `tables["images"]` has the numbers of each image.

    Raises:
        UnknownName: no such method, suite or variant.
        OutOfRange: no such model, or no images.

    Example:
        >>> score("act_x_grad", "object").table["auroc"][0] > 0.5          # doctest: +SKIP
        True
    """
    return table_of([method], suite, seed, models=models, n=n)


def table_of(
    methods: Iterable[str | Method],
    suite: str | Sequence[str] = "all",
    seed: int = 0,
    *,
    models: int | Sequence[int] | None = 0,
    n: int = 64,
) -> PlantedScores:
    """The same for several methods; arguments as for :func:`score`.

    Example:
        >>> table_of(["act_x_grad", "random"], "B", n=8).wide("hit")       # doctest: +SKIP
    """
    chosen = [one() if isinstance(one, type) else one for one in map(by_name, methods)]
    if not chosen:
        raise BadData("no methods to score.")
    opened = [load(name, number) for name in variants_of(suite) for number in _numbers(name, models)]
    rows, images = [], []
    for planted in opened:
        asked = planted.ask(n, seed)
        for one in chosen:
            row, per_image = _row(one, planted, asked, seed)
            rows.append(row)
            images.append(per_image)
    failed = sorted({row["method"] for row in rows if row["failed"]})
    caveats = [
        "Scored against what decides by construction, on small images of a few kinds: a high score is no proof for "
        "other models, a low score is a disproof for these.",
    ]
    if failed:
        caveats.append(f"No numbers for {', '.join(failed)} on some models: see the column failed.")
    return PlantedScores(
        title=f"Planted evidence: {len(chosen)} methods on {len(opened)} models",
        tables={"scores": pl.DataFrame(rows, infer_schema_length=None), "images": pl.concat(images)},
        facts={
            "suite_version": SUITE_VERSION,
            "n": n,
            "seed": seed,
            "measures": {name: metric.FORMULA for name, metric in MEASURES.items()},
        },
        words=_WORDS,
        caveats=tuple(caveats),
        provenance=provenance(opened[0].model, None, seed),
    )


def score_maps(
    maps: Float[Tensor, "row patch"], asked: Asked, reading: str = "value"
) -> dict[str, Float[np.ndarray, " image"]]:
    """Scores of given maps, one per image.

    Args:
        maps: one per row of `asked`.
        asked: from :meth:`Planted.ask`.
        reading: `value`, or `magnitude` (signs do not count).

    Raises:
        ShapeMismatch, NotFinite: maps that do not fit.
        BadData: another reading.
    """
    if reading not in ("value", "magnitude"):
        raise BadData(f"reading={reading!r}: give 'value' or 'magnitude'.")
    side = int(asked.truth.shape[1] ** 0.5)
    masks = rearrange(asked.truth, "row (down across) -> row down across", down=side)
    maps = maps.detach().double().cpu()
    maps = maps.abs() if reading == "magnitude" else maps
    found = {name: metric.measure(maps, masks, (side, side)).values for name, metric in MEASURES.items()}
    found["contest"] = contest(maps, asked.truth, asked.decoys)
    return {name: _over_images(torch.as_tensor(values).double(), asked) for name, values in found.items()}


def contest(
    maps: Float[Tensor, "row patch"], truth: Bool[Tensor, "row patch"], decoys: Bool[Tensor, "row patch"]
) -> Float[Tensor, " row"]:
    """AUROC of true patches against decoys alone, ties half; NaN where there is neither.

    Example:
        >>> contest(torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[True, False, False]]),
        ...         torch.tensor([[False, True, False]])).tolist()
        [1.0]
    """
    first, second = maps[:, :, None], maps[:, None]
    won = (first > second).double() + 0.5 * (first == second).double()
    pairs = (truth[:, :, None] & decoys[:, None]).double()
    return (won * pairs).sum((1, 2)) / pairs.sum((1, 2))


def _over_images(values: Tensor, asked: Asked) -> np.ndarray:
    n = int(asked.image.max()) + 1
    total, count = torch.zeros(2, n, dtype=torch.float64)
    known = ~values.isnan()
    total.index_add_(0, asked.image, values.nan_to_num())
    count.index_add_(0, asked.image, known.double())
    return torch.where(count > 0, total / count, torch.nan).numpy()


def _numbers(name: str, models: int | Sequence[int] | None) -> list[int]:
    if models is None:
        return seeds_of(name)
    return [models] if isinstance(models, int) else list(models)


def _row(method: Method, planted: Planted, asked: Asked, seed: int) -> tuple[dict[str, Any], pl.DataFrame]:
    size = int(asked.truth.shape[1] ** 0.5)
    area = float(asked.truth.double().mean())
    row: dict[str, Any] = {
        "method": method.NAME,
        "suite": planted.suite,
        "variant": planted.variant,
        "model": planted.seed,
        "reading": planted.reading,
    }
    n = int(asked.image.max()) + 1
    blank = np.full(n, np.nan)
    failed, seconds = "", float("nan")
    try:
        found = attribute(
            planted.model,
            asked.pixels,
            method,
            target=Target(classes=asked.classes),
            seed=seed,
            example_ids=asked.image.tolist(),
            progress=False,
        )
        seconds = found.facts["seconds"]
        scores = score_maps(torch.from_numpy(found.maps).flatten(1), asked, planted.reading)
    except (MechvisError, NotImplementedError) as error:
        failed, scores = f"{type(error).__name__}: {error}", dict.fromkeys(_SCORES, blank)
    for name, values in scores.items():
        estimate = bootstrap(values)
        row |= {
            name: float(estimate.effect[0]),
            f"{name}_low": float(estimate.low[0]),
            f"{name}_high": float(estimate.high[0]),
        }
    row |= {
        "n": n,
        "excluded": int(np.isnan(scores["auroc"]).sum()),
        "chance_ap": _chance_ap(size * size, int(asked.truth[0].sum())),
        "chance_hit": area,
        "seconds": seconds,
        "failed": failed,
    }
    keys = {name: [row[name]] * n for name in ("method", "variant", "model")}
    return row, pl.DataFrame(keys | {"image": np.arange(n)} | {name: scores[name] for name in _SCORES})


@lru_cache
def _chance_ap(patches: int, size: int) -> float:
    """Mean average precision of random maps against so many true patches."""
    maps = torch.rand(20_000, patches, generator=torch.Generator().manual_seed(0))
    places = maps[:, :size].sort(1, descending=True).values
    ranks = (maps[:, None] >= places[:, :, None]).sum(2).double()
    return float((torch.arange(1, size + 1) / ranks).mean())


_WORDS = {
    "method": "attribution method",
    "suite": "A: wired by hand; B: trained",
    "variant": "planted task",
    "model": "seed of the model",
    "reading": "value: maps as they are; magnitude: without their sign",
    "auroc": "how often a true patch has a larger value than another one; chance 0.5",
    "ap": "average precision of the map against the true patches; chance in chance_ap",
    "hit": "share of images whose largest patch is a true one; chance in chance_hit",
    "contest": "AUROC of true patches against decoys alone; chance 0.5",
    "n": "images",
    "excluded": "images without a number",
    "chance_ap": "average precision of random maps",
    "chance_hit": "share of patches that are true",
    "seconds": "time of the method, one process",
    "failed": "why there are no numbers",
    "image": "place of the image",
} | {
    f"{name}_{end}": f"{word} end of the 95 % interval of {name} over images"
    for name in _SCORES
    for end, word in (("low", "lower"), ("high", "upper"))
}
