"""Faithfulness cards, by their fields alone: gates first, then measures with intervals, then the rest.

A card is an object or a mapping (its JSON) with `gates` and `measures`, as faithfulness.md 3.2 lists them. Only what is
there is shown; a gate without a status counts as not run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechvis.explorer.panels import Card, Gate
from mechvis.report.blocks import Facts, Section

_PASSED, _FAILED = ("pass", "passed", "ok", "true", "yes"), ("fail", "failed", "false", "no")
_WORDS = {
    "measure": ("measure", "name", "id"),
    "control": ("control",),
    "operator": ("operator",),
    "value": ("value",),
    "low": ("low", "ci_low"),
    "high": ("high", "ci_high"),
    "n": ("n",),
    "excluded": ("excluded", "n_excluded"),
    "better": ("better", "direction"),
}
"""Columns of measures, and what a card may call them."""
_SECTIONS = ("subject", "method", "data", "task", "stability", "cost", "environment")


def card_in(thing: Any) -> Card | None:
    """The card that an object or a mapping is, or None."""
    if not all(_has(thing, name) for name in ("gates", "measures")):
        return None
    gates, measures = _get(thing, "gates"), _get(thing, "measures")
    if isinstance(gates, str) or not isinstance(gates, Sequence) or not _is_rows(measures):
        return None
    warnings = [str(line) for name in ("warnings", "caveats") for line in (_get(thing, name) or ())]
    sections = [
        Section(name, [Facts(value)]) for name in _SECTIONS if isinstance(value := _get(thing, name), Mapping) and value
    ]
    shown = sorted(map(_gate, gates), key=lambda gate: gate.passed is not False)  # failed ones first
    return Card(
        name=_name(thing),
        gates=tuple(shown),
        measures=tuple(map(_measure, _rows(measures))),
        sections=tuple(sections),
        scope=" ".join([str(_get(thing, "scope") or ""), *warnings]).strip(),
    )


def _gate(gate: Any) -> Gate:
    status = _get(gate, "status") if _has(gate, "status") else _get(gate, "passed")
    words = dict.fromkeys(str(word) for name in ("id", "name") if (word := _get(gate, name)))
    threshold = _said(_get(gate, "threshold"))
    return Gate(
        name=" ".join(words) or "gate",
        passed=_passed(status),
        statistic=_said(_get(gate, "statistic")),
        threshold=f"{_get(gate, 'rule') or ''} {threshold}".strip() if threshold else "",
        why=_said(_get(gate, "why")),
        said=status if isinstance(status, str) and _passed(status) is None else "",
    )


def _passed(status: Any) -> bool | None:
    word = str(status).strip().lower()
    return True if word in _PASSED else False if word in _FAILED else None


def _measure(measure: Any) -> Mapping[str, Any]:
    found = {}
    for name, words in _WORDS.items():
        value = next((value for word in words if (value := _get(measure, word)) is not None), None)
        if value not in (None, "") or name in ("measure", "value", "low", "high", "n"):
            found[name] = value if isinstance(value, int | float | str) or value is None else str(value)
    return found


def _name(thing: Any) -> str:
    kind, method = _get(thing, "object_kind"), _get(thing, "method")
    if isinstance(kind, str) and isinstance(method, Mapping) and method.get("name"):
        return f"{kind} by {method['name']}".replace("_", " ")
    for word in ("title", "name", "object_kind", "kind"):
        if isinstance(value := _get(thing, word), str) and value:
            return value
    return "card"


def _is_rows(value: Any) -> bool:
    return hasattr(value, "iter_rows") or (isinstance(value, Sequence) and not isinstance(value, str))


def _rows(value: Any) -> list[Any]:
    return list(value.iter_rows(named=True)) if hasattr(value, "iter_rows") else list(value)


def _has(thing: Any, name: str) -> bool:
    return name in thing if isinstance(thing, Mapping) else hasattr(thing, name)


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
