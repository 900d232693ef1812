"""G7: does the method find what is known to be there? Planted suites A (wired) and B (trained)."""

from mechvis.attribution.method import Method
from mechvis.cards import thresholds
from mechvis.cards.draft import Draft
from mechvis.errors import MechvisError


def planted_gate(draft: Draft, method: Method, level: str, seed: int) -> None:
    """Score the method on the planted suites; table `planted` and gate G7.

    Args:
        draft: the card so far.
        method: to be asked on models whose answer is known.
        level: decides how many images.
        seed: of the images.
    """
    try:
        from mechvis.testing import evidence

        found = evidence.score(method, n=32 if level == "smoke" else 128, seed=seed)
    except (MechvisError, RuntimeError, AttributeError) as error:
        draft.no_gate("G7", "not run", f"the method cannot be asked on the planted models: {error}")
        return
    draft.tables["planted"] = found.table
    worst = float(found.table["auroc"].min())
    why = "smallest AUROC over the planted models; 0.5 is chance"
    draft.gate("G7", worst, ">=", thresholds.PLANTED, why)
