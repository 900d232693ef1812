"""A learned dictionary in a notebook: what it reads and writes, how large and sparse it is, and how it was trained.

Shares of dead latents, errors and the like are shown where the dictionary carries them; nothing is measured here.
"""

from collections.abc import Mapping
from typing import Any

from mechvis.show.html import Html, bold, code, facts, fold, join, line, n_bytes, page

_MEASURED = ("fvu", "l0", "dead", "dead_share", "explained_variance", "loss_recovered")
_SETTINGS = ("tokens", "batch", "lr", "precision", "seed")


def dictionary(found: Any) -> str:
    """The display of a `sae.Dictionary`.

    Example:
        >>> dictionary(sae.load("my-dictionary"))                                                 # doctest: +SKIP
    """
    settings, ends = found.architecture.to_json(), found.ends
    tensors = list(found.parameters())
    known = {
        "architecture": settings.get("name"),
        "kind": ends.kind,
        "reads": join([join([code(name), f" ({width})"]) for name, width in ends.reads.items()], ", "),
        "writes": join([join([code(name), f" ({width})"]) for name, width in ends.writes.items()], ", ")
        if ends.transcodes
        else None,
        "latents": f"{found.n_latents:,} ({found.n_latents / ends.d_in:.3g} per dimension that is read)",
        "k": settings.get("k"),
        "size": f"{sum(t.numel() for t in tensors):,} parameters, "
        f"{n_bytes(sum(t.numel() * t.element_size() for t in tensors))}",
        "type and place": f"{str(tensors[0].dtype).removeprefix('torch.')} on {tensors[0].device}",
        **_measured(found.provenance),
    }
    other = {name: value for name, value in settings.items() if name not in ("name", "n_latents", "k")}
    head = line(bold(f"{settings.get('name')} {ends.kind}"), "Dictionary")
    return page(head, facts(known), fold("settings of the architecture", facts(other)), _trained(found.provenance))


def _measured(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Numbers of its quality that it carries, wherever its maker put them."""
    found = {}
    for place in (provenance, provenance.get("measured"), provenance.get("metrics"), provenance.get("evaluation")):
        if isinstance(place, Mapping):
            for name in _MEASURED:
                if isinstance(place.get(name), int | float):
                    share = name in ("dead", "dead_share")
                    found[name.replace("_", " ")] = f"{place[name]:.2%}" if share else f"{place[name]:.4g}"
    return found


def _trained(provenance: Mapping[str, Any]) -> Html:
    model, data = provenance.get("model"), provenance.get("rows") or provenance.get("data")
    training = provenance.get("training")
    told: dict[str, Any] = {}
    if isinstance(model, Mapping) and model:
        told["model"] = " ".join(str(model[key]) for key in ("name", "fingerprint") if key in model)
    if isinstance(data, Mapping) and data:
        told["rows"] = ", ".join(f"{name}: {value}" for name, value in data.items() if isinstance(value, str | int))
    if isinstance(training, Mapping):
        told |= {name: training[name] for name in _SETTINGS if training.get(name) is not None}
    if isinstance(provenance.get("time"), str):
        told["when"] = provenance["time"]
    return fold("training", facts(told)) if told else line("nothing is known of its training")
