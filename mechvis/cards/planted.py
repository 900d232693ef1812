"""G7: does the method find what is known to be there? Planted suites A (wired) and B (trained).

Two questions, as means over the planted models: are true patches above all others (AUROC), and above *decoys* alone
(contest)? The second is the harder one: the ground is empty, so what is merely conspicuous does well in the first.
Means and not the worst model: single-patch occlusion is right about models whose evidence is in one place and at a loss
where it is in two, and the table shows where.
"""

import numpy as np

from mechvis.attribution.method import Method
from mechvis.cards import thresholds
from mechvis.cards.draft import Draft
from mechvis.errors import MechvisError

IMAGES = {"smoke": 8, "standard": 64, "full": 128}
"""Images of each planted model."""


def planted_gate(draft: Draft, method: Method, level: str, seed: int) -> None:
    """Score the method on the planted suites; table `planted` and gates G7a and G7b.

    Args:
        draft: the card so far.
        method: to be asked on models whose answer is known.
        level: decides how many images.
        seed: of the images.
    """
    from mechvis.testing import evidence

    try:
        models = 0 if level == "smoke" else None
        table = evidence.score(method, "all", seed, n=IMAGES[level], models=models).table
    except (MechvisError, RuntimeError) as error:
        draft.no_gate("G7", "not run", f"the method cannot be asked on the planted models: {error}")
        return
    failed = table.filter(table["failed"] != "")
    if failed.height:
        names = ", ".join(sorted(set(failed["variant"])))
        draft.warnings.append(f"The method fails on planted models ({names}): {failed['failed'][0]}")
    measures = [f"{name}{end}" for name in ("auroc", "ap", "hit", "contest") for end in ("", "_low", "_high")]
    draft.tables["planted"] = table.select(
        "suite", "variant", "model", "reading", *measures, "n", "chance_hit", "failed"
    )
    if failed.height == table.height:
        draft.no_gate("G7", "not run", "the method fails on every planted model")
        return
    for letter, column, bound, what in (
        ("a", "auroc", thresholds.PLANTED, "true patches against all others"),
        ("b", "contest", thresholds.CONTEST, "true patches against decoys alone"),
    ):
        known = table[column].to_numpy()
        why = f"mean AUROC over {table.height - failed.height} planted models of {what}; 0.5 is chance"
        draft.gate(f"G7{letter}", float(known[~np.isnan(known)].mean()), ">=", bound, why)
