"""The fields of the older *saliency card* template, from a faithfulness card, so that the two conventions meet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechvis.cards.faithfulness_card import FaithfulnessCard


def saliency_fields(card: "FaithfulnessCard") -> dict[str, str]:
    """Determinism, dependence on settings, agnosticism, sensitivity: what the template asks, answered from the card.

    Example:
        >>> saliency_fields(card)["determinism"]                           # doctest: +SKIP
        'deterministic'
    """
    method = card.content["method"]
    claims, cost = method.get("claims", {}), card.content["cost"]

    def answer(id: str) -> str:
        asked = [gate for gate in card.gates if gate.id.startswith(id) and gate.status in ("pass", "fail")]
        if not asked:
            return "not tested"
        shown = ", ".join(f"{gate.statistic:.3g}" for gate in asked if gate.statistic is not None)
        return f"{'yes' if all(gate.status == 'pass' for gate in asked) else 'no'} ({shown})"

    reads = {"gradient": "needs gradients of the model", "attention": "needs attention patterns"}
    return {
        "method": str(method.get("name", "")),
        "determinism": "draws random numbers" if claims.get("random") else "deterministic",
        "hyperparameter dependence": ", ".join(f"{k}={v}" for k, v in method.get("settings", {}).items()) or "none",
        "model agnosticism": reads.get(claims.get("reads", ""), "needs outputs only"),
        "computational efficiency": f"{cost['forwards']} forward, {cost['backwards']} backward passes",
        "input sensitivity": answer("G6"),
        "label sensitivity": answer("G4"),
        "model sensitivity": answer("G3"),
        "semantic directness": "a number per patch" if card.kind == "attribution" else card.kind.replace("_", " "),
    }
