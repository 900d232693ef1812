"""How a card of a read-out begins: identity, model, images; and the gates that no read-out has."""

from typing import Any

from mechvis.cards.data import CardData, subject
from mechvis.cards.draft import Draft
from mechvis.errors import ResultMismatch, SplitOverlap
from mechvis.files import canonical_json, checksum
from mechvis.record import Record


def draft_of(
    record: Record, data: CardData, tower: Any, kind: str, method: dict[str, Any], task: dict[str, Any], **asked: Any
) -> Draft:
    """A draft for a record, which must be of this model.

    Raises:
        ResultMismatch: a record of another model.
    """
    known = record.provenance.get("model", {}).get("fingerprint")
    if known not in (None, tower.fingerprint):
        raise ResultMismatch(f"this {record.kind} is of another model ({known}) than {tower.name}, or weights changed.")
    described = {"facts": {name: value for name, value in record.facts.items() if not isinstance(value, dict)}}
    identity = checksum(canonical_json({"title": record.title, **described, "model": known or ""}).encode())
    return Draft(
        kind=kind, object_id=identity, subject=subject(tower), method=method, data=data.facts(), task=task, **asked
    )


def refuse_same(record: Record, images: Any) -> None:
    """Refuse the very images that a record was found on (which others they share is checked where that is known).

    Raises:
        SplitOverlap: the same set.
    """
    found_on = record.provenance.get("data", {}).get("fingerprint")
    if found_on and found_on == getattr(images, "fingerprint", None):
        raise SplitOverlap(f"this {record.kind} was found on these very images; judge it on others.")


def without(draft: Draft, reasons: dict[str, str]) -> None:
    """Say why gates do not apply: id -> reason."""
    for id, why in reasons.items():
        draft.no_gate(id, "not applicable", why)
