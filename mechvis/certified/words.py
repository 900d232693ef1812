"""What a certified result guarantees, on what assumption, and what it cost: as numbers, and in words."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mechvis.certified.bounds import TAILS
from mechvis.certified.calibration import Calibration
from mechvis.certified.elimination import Elimination
from mechvis.errors import ResultMismatch
from mechvis.results import Result

FEW = 10
"""A unit whose effect was other than zero on fewer images than this has shown too little for Student's t."""


def certificate(result: Result) -> str:
    """What a certified result guarantees, on what assumption, and what it cost, in words.

    Args:
        result: of :func:`mechvis.certified_top`, or the scores of a certified study.

    Raises:
        ResultMismatch: the result has no certificate.

    Example:
        >>> print(certificate(mechvis.certified_top(model, images, top=4)))                    # doctest: +SKIP
    """
    if "certificate" not in result.provenance:
        raise ResultMismatch(f"{result.title!r} is not the result of certified_top.")
    facts = result.provenance["certificate"]
    cost = facts["evaluations"]
    lines = [facts["statement"], f"Assumes: {facts['assumption']}."]
    if facts.get("seldom"):
        lines.append(
            f"Caution: {facts['seldom']} units had an effect other than zero on fewer than {FEW} of the images that "
            "decided about them. One that acts seldom looks like one that never does: tails='guarded' allows for that."
        )
    if facts["calibration"]:
        simulated = facts["calibration"]
        lines.append(
            f"Calibrated, not certified: intervals of {simulated['z']:g} standard errors; {simulated['error']:.1%} of "
            f"{simulated['runs']} simulated runs failed, in a world made of the first {simulated['pilot']} images."
        )
    if facts["contradicted"]:
        lines.append(f"Contradicted by the audit: {', '.join(facts['contradicted'])} was rejected and lies above.")
    elif facts["audited"]:
        lines.append(f"Audit: rejected units measured to the end: {facts['audited']}; none of them lies above.")
    lines.append(
        f"{cost['total']:,} evaluations (unit x image): {cost['elimination']:,} to decide, {cost['audit']:,} audit, "
        f"{cost['fresh']:,} fresh. Uniform sampling to the same certificate: {cost['uniform']:,} "
        f"({cost['uniform'] / cost['elimination']:.1f} x what deciding took); "
        f"the full sweep: {cost['full']:,} ({cost['full'] / cost['total']:.1f} x the total)."
    )
    if cost["gradients"]:
        lines.append(f"Gradients for the control variate: {cost['gradients']:,} images, forward and backward.")
    return "\n".join(lines)


def facts_of(
    found: Elimination,
    names: Sequence[str],
    metric: str,
    n_images: int,
    asked: dict[str, Any],
    *,
    again: int,
    chosen: Calibration | None = None,
    gradients: int = 0,
    what: str = "mean effect",
    kind: str = "images",
) -> dict[str, Any]:
    """The certificate in numbers, as JSON can hold it, with its statement in words.

    Args:
        found: what was decided.
        names: name of each unit.
        metric: what decided.
        n_images: all images.
        asked: what was asked for: `top`, `eps`, `delta`, `by`, `tails`, and what else a caller wants to keep.
        again: evaluations after the decisions (effects measured on fresh images).
        chosen: the half-widths, where they were calibrated.
        gradients: images of the control variate.
        what: what is ranked, in words.
        kind: which images these are, in words.
    """
    # The guard and a known range allow for what was not seen yet; where all images were drawn nothing is left unseen.
    trusting = chosen is not None or asked["tails"] == "student"
    facts = {
        **asked,
        "metric": metric,
        "units": len(names),
        "images": n_images,
        "certified": found.certified and chosen is None,
        "calibrated": found.certified and chosen is not None,
        "exhausted": found.exhausted,
        "selected": [names[i] for i in found.selected],
        "tolerance": found.tolerance,
        "shortfall": found.shortfall if np.isfinite(found.shortfall) else None,
        "seldom": int(((found.acting < FEW) & (found.n < n_images)).sum()) if trusting else 0,
        "audited": int(found.audited.sum()),
        "contradicted": [names[i] for i in found.contradicted],
        "assumption": TAILS[asked["tails"]] if chosen is None else "the first images look like all images",
        "calibration": None if chosen is None else asdict(chosen),
        "rounds": list(found.rounds),
        "evaluations": {
            "elimination": found.evaluations - found.audit_evaluations,
            "audit": found.audit_evaluations,
            "gradients": gradients,
            "uniform": found.uniform,
            "full": len(names) * n_images,
            "fresh": again,
            "total": found.evaluations + again,
        },
    }
    return {**facts, "statement": _statement(facts, what, kind)}


def _statement(facts: dict[str, Any], what: str, kind: str) -> str:
    top, metric, sure = facts["top"], facts["metric"], f"With probability {1 - facts['delta']:.3g}"
    what = f"absolute {what}" if facts["by"] == "size" else what
    rank = f"the {what} on rank {top} of {facts['units']} units over all {facts['images']:,} {kind}"
    if facts["contradicted"]:
        return f"No certificate: the audit found units above some of the {top} returned ones."
    if not (facts["certified"] or facts["calibrated"]):
        gap = "an unknown amount" if facts["shortfall"] is None else f"more than {facts['shortfall']:.4g}"
        return (
            f"No certificate: {facts['rounds'][-1]['images']:,} images did not suffice for a tolerance of "
            f"{facts['eps']:.3g}. {sure} no returned unit lies {gap} below {rank} ({metric})."
        )
    within = f"more than {facts['eps']:.3g} of it below" if facts["eps"] else "below"
    drawn = f"{facts['rounds'][-1]['images']:,} were drawn"
    if facts["exhausted"]:
        drawn = "all were drawn for the last decisions, which are exact"
    return f"{sure} none of the {top} returned units lies {within} {rank} ({metric}); {drawn}."
