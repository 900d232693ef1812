"""Edits of a model: made, measured, taken back.

    edit = editing.remove_heads(model, head_units([(2, 1)]), mode="mean", reference=others)
    card = editing.edit_card(model, edit, evaluation, chosen_on=selection, gain="worst group")
    edited = edit.apply(model)                     # a copy; the model itself stays as it is
    edit.save("runs/edit"); edit.undo(edited)      # bit by bit what it was

* `remove_heads`, `project_out`, `remove_edges`, `keep_only` make a `ModelEdit`: in the weights where that is exact, at
  run time where it is not (edges, means per token, directions before a LayerNorm); the edit says which, and why.
* `edit_card` measures it: paired intervals, groups and classes with Holm's correction, collateral, random edits.
* `self_repair`, `after_removal`: which heads take over when others are gone.
* `load_edit`, `save_edited`, `EditCard.load`: files.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "remove_heads": "circuits.editing.make",
        "project_out": "circuits.editing.make",
        "remove_edges": "circuits.editing.make",
        "keep_only": "circuits.editing.make",
        "ModelEdit": "circuits.editing.model_edit",
        "EditedModel": "circuits.editing.edited_model",
        "HeadRemoval": "circuits.editing.head_removal",
        "Projection": "circuits.editing.projection",
        "EdgeCut": "circuits.editing.edge_cut",
        "load_edit": "circuits.editing.store",
        "save_edited": "circuits.editing.save_edited",
        "edit_card": "circuits.editing.judge",
        "EditCard": "circuits.editing.card",
        "matched_directions": "circuits.editing.matched",
        "self_repair": "circuits.editing.self_repair",
        "after_removal": "circuits.editing.self_repair",
        "SelfRepair": "circuits.editing.takeover",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.editing.card import EditCard
    from circuits.editing.edge_cut import EdgeCut
    from circuits.editing.edited_model import EditedModel
    from circuits.editing.head_removal import HeadRemoval
    from circuits.editing.judge import edit_card
    from circuits.editing.make import keep_only, project_out, remove_edges, remove_heads
    from circuits.editing.matched import matched_directions
    from circuits.editing.model_edit import ModelEdit
    from circuits.editing.projection import Projection
    from circuits.editing.save_edited import save_edited
    from circuits.editing.self_repair import after_removal, self_repair
    from circuits.editing.store import load_edit
    from circuits.editing.takeover import SelfRepair
