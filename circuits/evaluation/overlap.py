"""A circuit is judged on other images than those that it was found on: otherwise it is praised for what it memorised.

What a circuit remembers of its images decides how well this can be checked:

* hashes of the single images (`provenance["task"]["image_hashes"]`): any shared image is found;
* only the fingerprint of the whole task: the same images are found, also when they are measured by another metric or
  under another ablation (as far as the ablation can be made again), but not a part of them;
* nothing (a circuit made by hand): nothing can be said.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from circuits.circuit import Circuit
from circuits.evaluation.image_hashes import image_hashes
from circuits.task import Task, _others
from mechvis.errors import SplitOverlap


def check_overlap(circuit: Circuit, task: Task, *, allow_overlap: bool = False) -> str:
    """Refuse to judge a circuit on the images that it was found on.

    Args:
        circuit: with provenance, if it has any.
        task: what it is to be judged on.
        allow_overlap: do not refuse.

    Returns:
        What is known, in words; empty: all images are others.

    Raises:
        SplitOverlap: shared images.
    """
    found_on = circuit.provenance.get("task") or {}
    known = found_on.get("image_hashes")
    if known:
        known = set(known)
        shared = [name for name, own in zip(task.ids, image_hashes(task.clean), strict=True) if own in known]
        if not shared:
            return ""
        what = f"{len(shared)} of {len(task)} images are those that the circuit was found on"
        names = f" ({', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''})"
    elif found_on.get("fingerprint"):
        if found_on["fingerprint"] not in set(_fingerprints(task, found_on, circuit.provenance)):
            return "images compared as a whole only: a few that the circuit was found on would go unnoticed"
        what, names = "the images are those that the circuit was found on", ""
    else:
        return "it is not known which images the circuit was found on"
    if not allow_overlap:
        raise SplitOverlap(
            f"{what}{names}: it would be praised for what it knows by heart. Find it on one half and judge it on the "
            "other (task.halves(seed)), draw other images, or pass allow_overlap=True."
        )
    return what


def _fingerprints(task: Task, found_on: dict[str, Any], provenance: dict[str, Any]) -> Iterator[str]:
    """Fingerprints of the task on the same images, measured as the circuit's was."""
    seed = (provenance.get("seeds") or {}).get("seed", task.seed)
    facts = {
        "metric_name": found_on.get("metric", task.metric_name),
        "ablation": found_on.get("ablation", task.ablation),
        "seed": seed,
    }
    yield task.fingerprint
    sources = [(task.corrupt, task.fixed), (None, None)]
    if len(task) > 1:
        sources.append((task.clean[_others(len(task), seed)], None))
    for corrupt, fixed in sources:
        yield replace(task, corrupt=corrupt, fixed=fixed, **facts).fingerprint
