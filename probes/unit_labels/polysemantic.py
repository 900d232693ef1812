"""Several descriptions for one unit: which groups of images make it active, and what is each group about?

A unit that answers to two things gets one label that is half wrong. So (methods2.md 21.4; **C** for clustering and
scores, port **X**)

1. Draw images evenly over the unit's *range* (its top share and equal parts of the range), and keep those that make it
   active (above `fires` of the range): where a unit is silent there is nothing to describe.
2. Group their embeddings by an independent model, by k-means; k by silhouette, 1 where no grouping is better than
   `least`.
3. Describe each group: mean embedding minus the mean of all images, nearest texts of the pool; share of the activation.
   Groups with the same nearest text are one (**X**): k-means also cuts along what the unit does not care about.
4. Polysemanticity = 1 - mean cosine between the groups' descriptions (texts weighted by nearness, **X**), beside what
   random groups of the same images and sizes give.
5. Judge every description on *new* images found by its nearest text alone: AUC and mean activation difference between
   the images nearest to the text and the half that is far from every description (**X**). The best one and the whole
   list are kept. Images of one concept also fall into groups by what else is in them (red squares, green squares): only
   if two descriptions hold on new images is a unit called polysemantic (**X**).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite
from probes.unit_labels.measures import area

HOLDS = 0.75
"""AUC on new images from which a description holds (**X**)."""
COMPARED = 3
"""Texts that a description is compared by, at least: the nearest one alone flips between equal ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """One group of images and what it is about."""

    texts: tuple[str, ...]
    """Nearest texts, best first."""
    share: float
    """Share of the activation of the images that were drawn."""
    n: int
    """Images in the group."""
    auc: float
    """On new images: how well the activation tells those nearest to the first text from those far from all."""
    difference: float
    """On new images: mean activation of those nearest minus that of the others, in standard deviations of these."""
    images: Int[np.ndarray, " image"]
    """Places of the group's images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Polysemantic:
    """The descriptions of one unit."""

    descriptions: tuple[Description, ...]
    """Largest share of the activation first."""
    polysemanticity: float
    """1 - mean cosine between descriptions; 0 for one group."""
    random_95: float
    """The 95 % quantile for random groups of the same images."""
    silhouette: float
    """Of the grouping; NaN for one group."""

    def holding(self, auc: float = HOLDS) -> tuple[Description, ...]:
        """Descriptions that hold on new images."""
        return tuple(one for one in self.descriptions if one.auc >= auc)

    @property
    def is_polysemantic(self) -> bool:
        """Do two descriptions hold on new images, and are the groups about different things, more than random ones?"""
        return len(self.holding()) > 1 and self.polysemanticity > self.random_95

    @property
    def best(self) -> Description:
        """The description that holds best on new images."""
        return max(self.descriptions, key=lambda one: one.auc)


def polysemantic(
    activations: Float[np.ndarray, " image"],
    embeddings: Float[np.ndarray, "image d_embed"],
    texts: Float[np.ndarray, "text d_embed"],
    names: Sequence[str],
    new: tuple[Float[np.ndarray, " other"], Float[np.ndarray, "other d_embed"]],
    *,
    sample: int = 500,
    top_share: float = 0.01,
    fires: float = 0.5,
    most: int = 5,
    least: float = 0.15,
    smallest: int = 4,
    named: int = 3,
    retrieved: float = 0.1,
    draws: int = 100,
    seed: int = 0,
) -> Polysemantic:
    """Group what makes a unit active, describe the groups, and judge the descriptions on new images.

    Args:
        activations: of one unit.
        embeddings: of the same images, by a model of images and texts.
        texts: embeddings of a pool of texts.
        names: the texts.
        new: activations and embeddings of other images, for judging.
        sample: images that are drawn over the range (**C**: 500), at most all.
        top_share: share of the images that are always drawn: the most active ones (**X**: 0.01).
        fires: share of the range above which the unit counts as active (**X**).
        most: groups at most (**X**: 5).
        least: smallest silhouette that splits (**X**).
        smallest: a group of fewer images is left out (**C**: 2; more here, one image is no group).
        named: texts per description (**X**: 3).
        retrieved: share of the new images that count as showing a description: those nearest to its texts (**X**).
        draws: random groupings for the control.
        seed: of all draws.

    Raises:
        ShapeMismatch: arrays that do not fit together.
        BadData: a constant unit, or fewer than `smallest` active images.
        OutOfRange: settings outside their range.
        NotFinite: NaN or Inf.
    """
    a, e, t = (np.asarray(x, np.float64) for x in (activations, embeddings, texts))
    na, ne = (np.asarray(x, np.float64) for x in new)
    if a.ndim != 1 or e.ndim != 2 or len(e) != len(a) or t.shape != (len(names), e.shape[1]):
        raise ShapeMismatch(f"activations {a.shape}, embeddings {e.shape}, texts {t.shape} and {len(names)} names.")
    if na.ndim != 1 or ne.shape != (len(na), e.shape[1]):
        raise ShapeMismatch(f"new images: activations {na.shape} and embeddings {ne.shape} do not fit.")
    if not (0 < fires < 1 and 0 < retrieved < 1 and 0 <= top_share < 1 and most >= 1 and smallest >= 2 and named >= 1):
        raise OutOfRange(f"fires={fires}, retrieved={retrieved}, most={most}, smallest={smallest}, named={named}.")
    for what, array in {"activations": a, "embeddings": e, "texts": t, "new activations": na, "new": ne}.items():
        finite(what, array)
    if a.max() == a.min():
        raise BadData("the unit is constant: nothing makes it active.")
    generator = np.random.default_rng(seed)
    chosen = over_the_range(a, sample, top_share, generator)
    limit = a.min() + fires * (a.max() - a.min())
    chosen = chosen[a[chosen] >= limit]
    if len(chosen) < smallest:
        raise BadData(f"{len(chosen)} images make the unit active above {fires:.0%} of its range; lower fires=.")
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    middle = unit.mean(0)
    pool = t / np.linalg.norm(t, axis=1, keepdims=True)
    pool = pool - pool.mean(0)
    pool = pool / np.maximum(np.linalg.norm(pool, axis=1, keepdims=True), 1e-12)
    group, silhouette = _groups(unit[chosen], most, least, smallest, seed)
    weight = a[chosen] - a.min()

    def about(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the nearest texts of some images, and the description as a direction."""
        near = pool @ (unit[rows].mean(0) - middle)
        order = np.argsort(-near, kind="stable")
        some = order[: max(named, COMPARED)]
        return order[:named], np.maximum(near[some], 0) @ pool[some]

    group = _merged(group, lambda one: int(about(chosen[one])[0][0]))
    sizes = np.bincount(group)
    kept = [i for i in range(len(sizes)) if sizes[i] >= smallest] or [int(sizes.argmax())]
    described = [about(chosen[group == i]) for i in kept]
    directions = [direction for _, direction in described]
    near = ne / np.linalg.norm(ne, axis=1, keepdims=True) - middle
    similar = np.stack([near @ pool[order[0]] for order, _ in described])
    shows = [_nearest(row, retrieved) for row in similar]
    # Images of the concept that were not among the nearest must not pass for images without it.
    spread = np.maximum(similar.std(1, keepdims=True), 1e-12)
    nearest = ((similar - similar.mean(1, keepdims=True)) / spread).max(0)
    control = (nearest <= np.median(nearest)) & ~np.any(shows, axis=0)
    found = []
    for place, i in enumerate(kept):
        auc, difference = _judge(na, shows[place], control)
        found.append(
            Description(
                texts=tuple(names[j] for j in described[place][0]),
                share=float(weight[group == i].sum() / weight.sum()),
                n=int(sizes[i]),
                auc=auc,
                difference=difference,
                images=chosen[group == i],
            )
        )
    null = [
        _spread([about(chosen[shuffled == i])[1] for i in kept])
        for shuffled in (generator.permutation(group) for _ in range(draws if len(kept) > 1 else 0))
    ]
    order = np.argsort([-one.share for one in found], kind="stable")
    return Polysemantic(
        descriptions=tuple(found[i] for i in order),
        polysemanticity=_spread(directions),
        random_95=float(np.quantile(null, 0.95)) if null else float("nan"),
        silhouette=silhouette,
    )


def over_the_range(
    a: Float[np.ndarray, " image"], sample: int, top_share: float, generator: np.random.Generator
) -> Int[np.ndarray, " drawn"]:
    """Images drawn evenly over the range of a unit: the top share, and equally many from each tenth of the range."""
    if sample >= len(a):
        return np.arange(len(a))
    top = np.argsort(-a, kind="stable")[: max(1, round(top_share * len(a)))]
    part = np.minimum(((a - a.min()) / (a.max() - a.min()) * 10).astype(int), 9)
    each = max(1, (sample - len(top)) // 10)
    drawn = [top]
    for i in range(10):
        there = np.setdiff1d(np.flatnonzero(part == i), top)
        drawn.append(generator.choice(there, min(each, len(there)), replace=False))
    return np.unique(np.concatenate(drawn).astype(np.int64))


def _groups(x: np.ndarray, most: int, least: float, smallest: int, seed: int) -> tuple[np.ndarray, float]:
    """k-means with k by silhouette; one group where no k reaches `least`."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    best, value = np.zeros(len(x), int), least
    for k in range(2, min(most, len(x) // smallest) + 1):
        if len(np.unique(x, axis=0)) < k:
            break
        group = KMeans(k, n_init=4, random_state=seed).fit_predict(x)
        score = float(silhouette_score(x, group))
        if score > value:
            best, value = group, score
    return best, value if best.any() else float("nan")


def _spread(directions: Sequence[np.ndarray]) -> float:
    """1 - mean cosine of pairs; 0 for one."""
    if len(directions) < 2:
        return 0.0
    unit = np.stack([d / max(np.linalg.norm(d), 1e-12) for d in directions])
    cosine = unit @ unit.T
    return float(1 - cosine[np.triu_indices(len(unit), 1)].mean())


def _merged(group: np.ndarray, text: Callable[[np.ndarray], int]) -> np.ndarray:
    """Groups whose nearest text is the same, as one; until no two are."""
    while True:
        texts = {i: text(group == i) for i in np.unique(group)}
        first = {t: min(i for i in texts if texts[i] == t) for t in texts.values()}
        found = np.array([first[texts[i]] for i in group])
        if np.array_equal(found, group):
            return group
        group = found


def _nearest(similarity: np.ndarray, share: float) -> np.ndarray:
    """The share of the images that is nearest to a description, as a mask."""
    there = np.zeros(len(similarity), bool)
    there[np.argsort(-similarity, kind="stable")[: max(1, round(share * len(similarity)))]] = True
    return there


def _judge(a: np.ndarray, there: np.ndarray, control: np.ndarray) -> tuple[float, float]:
    """(AUC, mean activation difference) of the images that show a description against the control."""
    either = there | control
    if not control.any() or (spread := a[control].std()) == 0:
        return float("nan"), float("nan")
    return area(a[either], there[either]), float((a[there].mean() - a[control].mean()) / spread)
