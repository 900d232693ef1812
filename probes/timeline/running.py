"""The running prediction: one linear probe per anchor, trained on some images, read on others (methods.md 3.1).

Anchors are sites in the order of the forward pass. `resid_post`: after every block (**X**). `half`: the embedding, then
the stream after attention and after the MLP of every block, for models with few layers (**X**). Or any list of sites.

The probe of each anchor is standardised by the training images (**X**) and has the weight decay with the smallest
validation loss. Probes differ in strength by depth; with few training images early ones overfit first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, unknown
from mechvis.progress import track
from probes.features import Features
from probes.linear.batches import rows_of
from probes.linear.estimators import ClassProbe
from probes.linear.judge import validation_loss
from probes.linear.split import Split

ANCHORS = ("resid_post", "half")


@dataclass(frozen=True, kw_only=True, eq=False)
class Running:
    """Probes of all anchors."""

    names: tuple[str, ...]
    """Features of each anchor, in the order of the forward pass."""
    probes: tuple[ClassProbe, ...]
    """One per anchor."""
    weight_decays: tuple[float, ...]
    """That were chosen."""
    n_classes: int
    """Classes that an answer can be."""

    def probability(
        self, features: Features, images: np.ndarray | None = None
    ) -> Float[np.ndarray, "image anchor class"]:
        """Probability of every class at every anchor; 0 for classes that no training image had.

        Args:
            features: with one row per image for every anchor.
            images: positions; all by default.
        """
        images = np.arange(features.n_images) if images is None else images
        found = np.zeros((len(images), len(self.names), self.n_classes))
        for at, (name, probe) in enumerate(zip(self.names, self.probes, strict=True)):
            found[:, at, probe.classes_] = probe.predict_proba(rows_of(features[name], features.n_images, images))
        return found


def sites_of(model: Any, anchors: str | Sequence[str]) -> list[str]:
    """The sites that anchors mean, in the order of the forward pass.

    Raises:
        UnknownName: neither `resid_post` nor `half` nor sites.
        UnknownSite: no such site.
        BadData: fewer than two anchors.

    Example:
        >>> sites_of(model, "half")[:3]                                                            # doctest: +SKIP
        ['hook_embed', 'blocks.0.hook_resid_mid', 'blocks.0.hook_resid_post']
    """
    if isinstance(anchors, str) and anchors in ANCHORS:
        patterns = ["blocks.*.hook_resid_post"]
        patterns += ["hook_embed", "blocks.*.hook_resid_mid"] if anchors == "half" else []
    elif isinstance(anchors, str) and "." not in anchors and "*" not in anchors:
        raise unknown("choice of anchors", anchors, ANCHORS)
    else:
        patterns = [anchors] if isinstance(anchors, str) else list(anchors)
    chosen = set(model.graph.match(patterns))
    sites = [name for name in model.graph.names if name in chosen]
    if len(sites) < 2:
        raise BadData(f"a timeline needs at least two anchors; {anchors!r} means {', '.join(sites) or 'none'}.")
    return sites


def fit_running(
    features: Features,
    target: Int[np.ndarray, " image"],
    split: Split,
    *,
    n_classes: int,
    weight_decays: Sequence[float],
    progress: bool = True,
    **settings: Any,
) -> Running:
    """Fit a probe per set of features on the training part.

    Args:
        features: one row per image.
        target: class numbers.
        split: training and validation part.
        n_classes: classes that an answer can be.
        weight_decays: to choose from by the validation loss.
        progress: show a progress bar.
        settings: of the probes.

    Raises:
        BadData: features with several rows per image, or nobody to choose by.
    """
    if len(weight_decays) > 1 and not len(split.validation):
        raise BadData(
            f"{len(weight_decays)} weight decays and no validation image to choose by: give one, or a validation part."
        )
    probes, chosen = [], []
    with track(len(features), "probes", " anchors", show=progress) as bar:
        for name, rows in features.items():
            if len(rows) != features.n_images:
                raise BadData(
                    f"{name} has several rows per image; a timeline needs one: tokens 'cls', 'mean' or 'cls+mean'."
                )
            train = rows_of(rows, features.n_images, split.train)
            held = rows_of(rows, features.n_images, split.validation)
            tried = []
            for decay in weight_decays:
                probe = ClassProbe(weight_decay=decay, **settings).fit(train, target[split.train])
                loss = (
                    validation_loss("classes", probe, held, target[split.validation]) if len(weight_decays) > 1 else 0.0
                )
                tried.append((loss, -decay, probe))
            loss, decay, probe = min(tried, key=lambda one: one[:2])
            probes.append(probe)
            chosen.append(-decay)
            bar.update(1)
    return Running(names=tuple(features), probes=tuple(probes), weight_decays=tuple(chosen), n_classes=n_classes)
