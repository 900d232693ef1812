"""Which images are decided by the same concepts? Strategies, and the concepts that are common but unreliable.

From the importances of concepts for images of one class (methods2.md 17.4, strategic cluster graph; **A**, **K**):

1. Each image's importances become shares: what supports the class, as a part of all support.
2. Images with similar shares are a *strategy*: k-means, the number of clusters by the mean silhouette.
3. Their places in a plane (principal components, or t-SNE) make the graph.
4. For each concept: *prevalence*, its mean share, and *reliability*, how often the model is right on images where it is
   the largest. Four quadrants: common and reliable, common and unreliable (look there first), rare and either.

k-means finds clusters in anything. So the silhouette is compared with that of importances permuted within each
concept, which keeps every concept's values and breaks what goes together: strategies below that are not `separate`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import Record, finite
from mechvis.stats import bootstrap

Support = Literal["positive", "absolute"]
Plane = Literal["pca", "tsne"]


class Strategies(Record):
    """Strategies of one class: `table` has one row per concept, `tables["strategies"]` one per strategy,
    `tables["images"]` one per image."""

    KIND = "strategies"

    def figures(self) -> list[Any]:
        """The graph: images in the plane, and prevalence against reliability."""
        from mechvis.plots.strategy_graph import strategy_graph
        from mechvis.report.blocks import Figure

        images, concepts = self.tables["images"], self.table
        figure = strategy_graph(
            images.select("x", "y").to_numpy(),
            images["strategy"].to_numpy(),
            prevalence=concepts["prevalence"].to_numpy(),
            reliability=concepts["reliability"].to_numpy(),
            names=concepts["concept"].to_list(),
            right=None if images["correct"].null_count() else images["correct"].to_numpy(),
            common=self.facts["common"],
            reliable=self.facts["reliable"],
            title=self.title,
        )
        return [Figure(figure, "Left: images, by what decides them. Right: concepts.")]


def strategies(
    importances: Float[np.ndarray, "image concept"],
    *,
    correct: Bool[np.ndarray, " image"] | None = None,
    names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    n_strategies: int | None = None,
    most: int = 6,
    support: Support = "positive",
    plane: Plane = "pca",
    common: float | None = None,
    reliable: float | None = None,
    nulls: int = 20,
    title: str = "Strategies",
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
) -> Strategies:
    """Cluster images by what decides them (methods2.md 17.4).

    Args:
        importances: of the concepts of one class, from :func:`probes.concepts.importance.importance`.
        correct: is the model right on the image? Without it there is no reliability.
        names: of the concepts.
        ids: of the images.
        n_strategies: how many clusters; by default what the silhouette says, from 2 to `most`.
        most: see there.
        support: what counts: what speaks for the class only, or everything by its size (**X**).
        plane: where images are drawn: principal components, or t-SNE (not for fewer than 10 images).
        common: prevalence from which a concept is common; default 1 / number of concepts (**X**).
        reliable: reliability from which a concept is reliable; default the accuracy of all images (**X**).
        nulls: permuted copies.
        title: of the record.
        seed: of everything random.
        provenance: to keep in the record.

    Returns:
        Strategies.

    Raises:
        BadData: fewer than 4 images, or no image with support.
        OutOfRange: more strategies than images.
        ShapeMismatch, NotFinite, UnknownName.

    Example:
        >>> found = strategies(np.eye(2)[[0, 1] * 10] + 0.1, correct=np.arange(20) % 2 == 0)
        >>> found.table.select("concept", "reliability").rows()
        [('c0', 1.0), ('c1', 0.0)]
    """
    importances = finite("the importances", np.asarray(importances, np.float64))
    if importances.ndim != 2:
        raise ShapeMismatch(f"importances [image concept] are wanted, got {list(importances.shape)}.")
    if support not in ("positive", "absolute"):
        raise unknown("kind of support", support, ("positive", "absolute"))
    if plane not in ("pca", "tsne"):
        raise unknown("plane", plane, ("pca", "tsne"))
    n, k = importances.shape
    for what, given, count in (("correct", correct, n), ("names", names, k), ("ids", ids, n)):
        if given is not None and len(given) != count:
            raise ShapeMismatch(f"{len(given)} entries in {what}, {count} are wanted.")
    shares, held = shares_of(importances, support)
    if held.sum() < 4:
        raise BadData(f"{int(held.sum())} of {n} images have a concept that supports the class: at least 4 are needed.")
    used = shares[held]
    if n_strategies is not None and not 1 <= n_strategies <= len(used):
        raise OutOfRange(f"{n_strategies} strategies of {len(used)} images.")
    cluster, silhouette = clusters(used, n_strategies, most, seed)
    generator = np.random.default_rng(seed)
    null = []
    for _ in range(nulls):
        mixed = np.stack([generator.permutation(column) for column in used.T], axis=1)
        mixed /= np.maximum(mixed.sum(1, keepdims=True), 1e-300)
        null.append(clusters(mixed, n_strategies, most, seed)[1])
    edge = float(np.quantile(null, 0.95)) if null else float("nan")
    names = list(names) if names is not None else [f"c{i}" for i in range(k)]
    right = None if correct is None else np.asarray(correct, bool)[held]
    common = 1 / k if common is None else common
    reliable = (float(right.mean()) if right is not None else None) if reliable is None else reliable
    x, y = _plane(used, plane, seed)
    dominant = used.argmax(1)
    images = pl.DataFrame(
        {
            "image": [ids[i] if ids is not None else f"image {i}" for i in np.flatnonzero(held)],
            "strategy": cluster,
            "dominant": [names[i] for i in dominant],
            "share": used.max(1),
            "correct": pl.Series(right, dtype=pl.Boolean) if right is not None else [None] * len(used),
            "x": x,
            "y": y,
        }
    )
    separate = bool(silhouette > edge) if null else None
    said = [
        f"k-means finds clusters in anything: the silhouette is {silhouette:.2f}, and permuted importances reach "
        f"{edge:.2f} (95 % of {nulls} draws), so these strategies are {'' if separate else 'not '}told apart."
    ]
    if right is None:
        said.append("Nothing is known of which images the model is right on: no reliability.")
    return Strategies(
        title=title,
        tables={
            "concepts": _concepts(used, dominant, right, names, common, reliable, seed),
            "strategies": _strategies(used, cluster, right, names, seed),
            "images": images,
        },
        arrays={"shares": used},
        facts={
            "silhouette": silhouette,
            "silhouette_permuted": edge if null else None,
            "separate": separate,
            "common": common,
            "reliable": reliable,
            "left_out": int(n - held.sum()),
            "images": len(used),
        },
        words={
            "prevalence": "mean share of the concept in what supports the class",
            "reliability": "share of the images on which it is the largest that the model is right on",
            "quadrant": "common or rare, reliable or unreliable, at the marks in `common` and `reliable`",
            "left_out": "images in which no concept supports the class",
        },
        caveats=tuple(said),
        provenance=provenance or {},
    )


def shares_of(
    importances: Float[np.ndarray, "image concept"], support: Support = "positive"
) -> tuple[Float[np.ndarray, "image concept"], Bool[np.ndarray, " image"]]:
    """Each concept's share of the support of an image, and which images have any.

    Example:
        >>> shares_of(np.array([[3.0, 1.0, -1.0]]))[0]
        array([[0.75, 0.25, 0.  ]])
    """
    parts = np.clip(importances, 0, None) if support == "positive" else np.abs(importances)
    total = parts.sum(1)
    held = total > 1e-12 * max(float(np.abs(importances).max(initial=0)), 1e-300)
    return parts / np.where(held, total, 1.0)[:, None], held


def clusters(
    shares: Float[np.ndarray, "image concept"], n_strategies: int | None, most: int, seed: int
) -> tuple[np.ndarray, float]:
    """Clusters `[image]`, the largest first, and their mean silhouette (0 for one cluster)."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    different = len(np.unique(shares.round(12), axis=0))
    best: tuple[np.ndarray, float] | None = None
    for count in range(2, most + 1) if n_strategies is None else [n_strategies]:
        if count > different or count >= len(shares) or count < 2:
            continue
        found = KMeans(count, n_init=5, random_state=seed).fit_predict(shares)
        score = float(silhouette_score(shares, found))
        if best is None or score > best[1] + 1e-9:
            best = found, score
    if best is None:
        return np.zeros(len(shares), int), 0.0
    order = np.argsort(-np.bincount(best[0]), kind="stable")
    return np.argsort(order)[best[0]], best[1]


def _plane(shares: np.ndarray, plane: Plane, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if plane == "tsne":
        from sklearn.manifold import TSNE

        if len(shares) < 10:
            raise BadData(f"t-SNE of {len(shares)} images: use plane='pca'.")
        perplexity = min(30.0, (len(shares) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(shares).astype(np.float64)
    else:
        centred = shares - shares.mean(0)
        _, _, right = np.linalg.svd(centred, full_matrices=False)
        axes = right[:2] * np.sign(right[np.arange(min(2, len(right))), np.abs(right[:2]).argmax(1)])[:, None]
        places = centred @ axes.T
    if places.shape[1] == 1:
        places = np.concatenate([places, np.zeros_like(places)], axis=1)
    return places[:, 0], places[:, 1]


def _concepts(
    shares: np.ndarray,
    dominant: np.ndarray,
    right: np.ndarray | None,
    names: Sequence[str],
    common: float,
    reliable: float | None,
    seed: int,
) -> pl.DataFrame:
    mean = bootstrap(shares.T, seed=seed)
    rows = []
    for i, name in enumerate(names):
        row = {"concept": name, "prevalence": mean.effect[i], "low": mean.low[i], "high": mean.high[i]}
        own = dominant == i
        row |= {"dominant_n": int(own.sum()), "reliability": None, "reliability_low": None, "reliability_high": None}
        quadrant = "common" if mean.effect[i] >= common else "rare"
        if right is not None and own.any():
            low, high = wilson(int(right[own].sum()), int(own.sum()))
            value = float(right[own].mean())
            row |= {"reliability": value, "reliability_low": low, "reliability_high": high}
            quadrant += f" and {'reliable' if value >= reliable else 'unreliable'}"
        rows.append({**row, "quadrant": quadrant})
    floats = dict.fromkeys(("reliability", "reliability_low", "reliability_high"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=floats)


def _strategies(
    shares: np.ndarray, cluster: np.ndarray, right: np.ndarray | None, names: Sequence[str], seed: int
) -> pl.DataFrame:
    rows = []
    for i in np.unique(cluster):
        own = cluster == i
        means = shares[own].mean(0)
        top = np.argsort(-means, kind="stable")[:3]
        row = {"strategy": int(i), "n": int(own.sum()), "accuracy": None, "low": None, "high": None}
        if right is not None:
            low, high = wilson(int(right[own].sum()), int(own.sum()))
            row |= {"accuracy": float(right[own].mean()), "low": low, "high": high}
        rows.append({**row, "concepts": [f"{names[j]} {means[j]:.0%}" for j in top if means[j] > 0]})
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("accuracy", "low", "high"), pl.Float64))


def wilson(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (**K**).

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    if not 0 <= right <= n or n < 1:
        raise OutOfRange(f"{right} of {n} is no share.")
    share = right / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))
