"""Causal control: does exchanging a few latents change one attribute, and only that? (methods2.md 21.1 step 2)

Row h and its counterfactual h' (the same but for one attribute) have codes f and f', in the units of the model
(`sae.evaluation.written`). Of the latents that are active in either, a set S of at most k is exchanged:

    h_edit = h + Σ_{i in S} (f'_i - f_i) d_i

The error of the dictionary stays as it is, so the edit is the exchange alone. S is chosen

* `f1`: by the F1 of the latents for the old and the new value, among the active ones (what someone who reads labels
  off latents would do [C]);
* `greedy`: one by one, so that |h_edit - h'| falls most: the best that is to be had, knowing the answer;
* `random`: active latents at random, the control.

Success: the read-out of h_edit names the same value as that of h'. Kept: all other attributes too. Magnitude: share of
what is written that S was responsible for, w_i = f_i d_i·(ĥ - mean) / |ĥ - mean|² [C]: an edit that replaces everything
always succeeds. The ceiling is the edit by a supervised dictionary (`sae.evaluation.supervised`).

`control` works on rows and any read-out; `control_in_model` on pairs of images, where the read-out is the model itself:
the same k latents are exchanged at all tokens of an image, and the reference is the run with the counterfactual
activation in place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.evaluation.exchange import WAYS, exchanges, weights
from sae.evaluation.intervals import columns, mean
from sae.evaluation.written import strengths

KS = (1, 2, 4, 8, 16)
ReadOut = Callable[[Float[Tensor, "row d"]], Mapping[str, np.ndarray]]
"""Names of attributes with the value that is read off each row."""

WORDS = {
    "attribute": "the attribute that is edited",
    "way": "how latents are chosen: f1, greedy, random; 'nothing' and 'everything' exchange none and all; "
    "'supervised' is the ceiling",
    "k": "latents that are exchanged at most",
    "success": "share of rows (images) on which the attribute is read as in the counterfactual, with its interval",
    "kept": "share on which every other attribute is read as in the counterfactual",
    "magnitude": "mean share of what is written that the exchanged latents were responsible for",
    "distance": "|h_edit - h'|² over |h - h'|²",
    "recovered": "1 - KL(counterfactual || edited) / KL(counterfactual || untouched), of the model's output",
    "n": "rows or images",
}


class Control(Record):
    """Success and side effects of exchanging latents, by attribute, way and k."""

    KIND = "dictionary_control"

    def success(self, attribute: str, way: str, k: int | None = None) -> tuple[float, float, float]:
        """One cell with its interval."""
        rows = self.table.filter((pl.col("attribute") == attribute) & (pl.col("way") == way))
        rows = rows if k is None else rows.filter(pl.col("k") == k)
        if rows.height != 1:
            raise BadData(f"{rows.height} rows for {attribute!r}, {way!r}, k={k}; exactly one is wanted.")
        row = rows.row(0, named=True)
        return row["success"], row["success_low"], row["success_high"]


@torch.no_grad()
def control(
    dictionary: Any,
    rows: Float[Tensor, "row d"],
    counterfactual: Float[Tensor, "row d"],
    attribute: str,
    before: np.ndarray,
    after: np.ndarray,
    read_out: ReadOut,
    *,
    f1: Mapping[Any, Float[np.ndarray, " latent"]] | None = None,
    ceiling: Any = None,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Control:
    """Edit one attribute of rows by exchanging latents.

    Args:
        dictionary: reads and writes these rows.
        rows: activations h.
        counterfactual: h', the same rows with another value of the attribute.
        attribute: which.
        before: its value in each row.
        after: its value in the counterfactual.
        read_out: what attributes are read off rows.
        f1: F1 of every latent by value of the attribute, from training rows; without it `f1` is left out.
        ceiling: a `Supervised`, for the ceiling.
        ks: how many latents are exchanged at most.
        seed: of random choices and resamples.

    Raises:
        ShapeMismatch: arrays that do not belong together.
        BadData: the read-out does not name the attribute; a dictionary that writes something else than it reads.
    """
    if rows.shape != counterfactual.shape or rows.ndim != 2 or len(before) != len(rows) or len(after) != len(rows):
        told = f"{list(rows.shape)}, {list(counterfactual.shape)}, {len(before)}, {len(after)}"
        raise ShapeMismatch(f"rows, counterfactuals [row d] and values belong together; got {told}.")
    require_autoencoder(dictionary)
    wanted = {name: np.asarray(values) for name, values in read_out(counterfactual).items()}
    if attribute not in wanted:
        raise BadData(f"the read-out names {', '.join(wanted) or 'nothing'}, not {attribute!r}.")
    codes, new = strengths(dictionary, rows), strengths(dictionary, counterfactual)
    directions, target = dictionary.directions.double(), (counterfactual - rows).double()
    change, share = (new - codes)[:, None], weights(dictionary, rows)
    generator = torch.Generator().manual_seed(seed)
    rank = None if f1 is None else _rank(f1, before, after, codes, new)
    whole = target.square().sum(1).clamp_min(1e-300)
    table = []

    def add(way: str, k: int | None, edited: Tensor, chosen: Tensor | None) -> None:
        read = {name: np.asarray(values) for name, values in read_out(edited.to(rows.dtype)).items()}
        hit = read[attribute] == wanted[attribute]
        kept = np.all(
            [read[name] == wanted[name] for name in wanted if name != attribute] or [np.ones_like(hit)], axis=0
        )
        far = ((counterfactual - edited).double().square().sum(1) / whole).cpu().numpy()
        size = None if chosen is None else float((share * chosen.cpu().numpy()).sum(1).mean())
        table.append(
            {"attribute": attribute, "way": way, "k": k, **columns("success", mean(hit.astype(float), seed=seed)),
             **columns("kept", mean(kept.astype(float), seed=seed)), "magnitude": size,
             "distance": float(far.mean()), "n": len(hit)}
        )  # fmt: skip

    add("nothing", 0, rows.double(), torch.zeros(codes.shape, dtype=torch.bool))
    for way in WAYS if rank is not None else WAYS[1:]:
        found = exchanges(change, target[:, None], directions, ks, way, rank=rank, generator=generator)
        for k, chosen in found.items():
            add(way, k, rows.double() + (change[:, 0] * chosen) @ directions, chosen)
    everything = torch.ones(codes.shape, dtype=torch.bool)
    add("everything", None, rows.double() + change[:, 0] @ directions, everything)
    if ceiling is not None:
        moved = ceiling.edit(rows.double().cpu().numpy(), attribute, np.asarray(before), np.asarray(after))
        add("supervised", None, torch.from_numpy(moved).to(rows.device), None)
    return record(table, f"Control of {attribute}", seed)


def _rank(f1: Mapping[Any, np.ndarray], before: Any, after: Any, codes: Tensor, new: Tensor) -> Tensor:
    """A latent counts with its F1 for the old value where it is active before, for the new one where after."""
    tables = {value: torch.as_tensor(np.asarray(scores)).to(codes) for value, scores in f1.items()}
    for value in np.unique(np.concatenate([np.asarray(before), np.asarray(after)])).tolist():
        if value not in tables:
            raise unknown("value", value, tables)
    old = torch.stack([tables[value] for value in np.asarray(before).tolist()])
    late = torch.stack([tables[value] for value in np.asarray(after).tolist()])
    return torch.maximum(torch.where(codes != 0, old, -1.0), torch.where(new != 0, late, -1.0))


def require_autoencoder(dictionary: Any) -> None:
    """Refuse what is about several sites."""
    if dictionary.ends.kind != "autoencoder":
        raise BadData(f"latents are exchanged at one site that is read and written; this is a {dictionary.ends.kind}.")


def record(table: list[dict], title: str, seed: int, model: Any = None, images: Any = None) -> Control:
    """Rows of the table as a record."""
    return Control(
        title=title,
        tables={"edits": pl.DataFrame(table, schema_overrides={"k": pl.Int64, "magnitude": pl.Float64})},
        words=WORDS,
        caveats=(
            "greedy knows the counterfactual: it is the best that k latents can do, not what reading them would do.",
            "Compare with 'random' of the same k, and mind the magnitude: exchanging everything always comes close.",
        ),
        provenance=provenance(model=model, images=images, seed=seed),
    )
