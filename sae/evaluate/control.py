"""Causal control: does exchanging a few latents change one attribute, and only that? (methods2.md 21.1 step 2)

Row h and its counterfactual h' (the same but for one attribute) have codes f and f', in the units of the model
(`sae.evaluate.written`). Of the latents that are active in either, a set S of at most k is exchanged:

    h_edit = h + Σ_{i in S} (f'_i - f_i) d_i

The error of the dictionary stays as it is, so the edit is the exchange alone. S is chosen

* `f1`: by the F1 of the latents for the old and the new value, among the active ones (what someone who reads labels
  off latents would do [C]);
* `greedy`: one by one, so that |h_edit - h'| falls most: the best that is to be had, knowing the answer;
* `random`: active latents at random, the control.

Success: the read-out of h_edit names the same value as that of h'. Kept: all other attributes too. Magnitude: share of
what is written that S was responsible for, w_i = f_i d_i·(ĥ - mean) / |ĥ - mean|² [C]: an edit that replaces everything
always succeeds. The ceiling is the edit by a supervised dictionary (`sae.evaluate.supervised`).

`control` works on rows and any read-out; `control_in_model` on pairs of images, where the read-out is the model itself:
the same k latents are exchanged at all tokens of an image, and the reference is the run with the counterfactual
activation in place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.evaluate.intervals import columns, mean
from sae.evaluate.written import strengths

KS = (1, 2, 4, 8, 16)
WAYS = ("f1", "greedy", "random")
Way = Literal["f1", "greedy", "random"]
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
def weights(dictionary: Any, rows: Float[Tensor, "row d"]) -> Float[np.ndarray, "row latent"]:
    """Share of what is written that each latent is responsible for; they sum to the whole of it.

    w_i = f_i d_i·(ĥ - b) / |ĥ - b|², b what is written without any latent. Rows without an active latent get zeros.
    """
    codes, directions = strengths(dictionary, rows), dictionary.directions.double()
    written = codes @ directions
    whole = written.square().sum(1, keepdim=True)
    share = codes * (written @ directions.T) / whole.clamp_min(1e-300)
    return torch.where(whole > 0, share, 0.0).cpu().numpy()


def exchange(
    change: Float[Tensor, "image token latent"],
    target: Float[Tensor, "image token d"],
    directions: Float[Tensor, "latent d"],
    k: int,
    way: Way,
    *,
    rank: Float[Tensor, "image latent"] | None = None,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "image latent"]:
    """Which latents are exchanged, at most k of each image (all its tokens together).

    Args:
        change: f' - f.
        target: h' - h.
        directions: what a unit of each latent writes.
        k: at most.
        way: f1, greedy, random.
        rank: for f1: what latents are ranked by, larger first.
        generator: for random.

    Raises:
        UnknownName: another way.
        BadData: k below one, or no rank for f1.
    """
    if way not in WAYS:
        raise unknown("way to choose latents", way, WAYS)
    if k < 1:
        raise BadData(f"k={k}: at least one latent is exchanged.")
    if way == "f1" and rank is None:
        raise BadData("way='f1' needs rank=, the F1 of each latent.")
    moves = (change != 0).any(1)
    if way == "greedy":
        return _greedy(change, target, directions, k, moves)
    if way == "random":
        rank = torch.rand(moves.shape, generator=generator, dtype=torch.float64).to(moves.device)
    order = torch.where(moves, rank.double(), -torch.inf)
    at = order.topk(min(k, order.shape[1]), dim=1).indices
    return torch.zeros_like(moves).scatter(1, at, True) & moves


def _greedy(change: Tensor, target: Tensor, directions: Tensor, k: int, moves: Tensor) -> Tensor:
    """One latent after the other: that which lowers Σ_token |target - what was moved|² most, as long as one does."""
    left, chosen = target.double(), torch.zeros_like(moves)
    D, c = directions.double(), change.double()
    cost = c.square().sum(1) * D.square().sum(1)
    rows = torch.arange(len(c), device=c.device)
    for _ in range(min(k, moves.shape[1])):
        gain = 2 * (c * (left @ D.T)).sum(1) - cost
        gain = torch.where(moves & ~chosen, gain, -torch.inf)
        best, at = gain.max(1)
        better = best > 0
        chosen[rows[better], at[better]] = True
        step = c[rows, :, at][:, :, None] * D[at][:, None]
        left = left - torch.where(better[:, None, None], step, 0.0)
    return chosen


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
    _require_autoencoder(dictionary)
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
        for k in ks:
            chosen = exchange(change, target[:, None], directions, k, way, rank=rank, generator=generator)
            add(way, k, rows.double() + (change[:, 0] * chosen) @ directions, chosen)
    everything = torch.ones(codes.shape, dtype=torch.bool)
    add("everything", None, rows.double() + change[:, 0] @ directions, everything)
    if ceiling is not None:
        moved = ceiling.edit(rows.double().cpu().numpy(), attribute, np.asarray(before), np.asarray(after))
        add("supervised", None, torch.from_numpy(moved).to(rows.device), None)
    return _record(table, f"Control of {attribute}", seed)


def _rank(f1: Mapping[Any, np.ndarray], before: Any, after: Any, codes: Tensor, new: Tensor) -> Tensor:
    """A latent counts with its F1 for the old value where it is active before, for the new one where after."""
    tables = {value: torch.as_tensor(np.asarray(scores)).to(codes) for value, scores in f1.items()}
    for value in np.unique(np.concatenate([np.asarray(before), np.asarray(after)])).tolist():
        if value not in tables:
            raise unknown("value", value, tables)
    old = torch.stack([tables[value] for value in np.asarray(before).tolist()])
    late = torch.stack([tables[value] for value in np.asarray(after).tolist()])
    return torch.maximum(torch.where(codes != 0, old, -1.0), torch.where(new != 0, late, -1.0))


@torch.no_grad()
def control_in_model(
    dictionary: Any,
    model: Any,
    pairs: Any,
    *,
    ks: Sequence[int] = KS,
    ways: Sequence[Way] = ("greedy", "random"),
    head: int | None = None,
    tokens: str | Sequence[int] = "all",
    batch_size: int = 64,
    seed: int = 0,
) -> Control:
    """Exchange latents between images and their counterfactuals, inside the model.

    The reference is the run of the clean image with the counterfactual activation in place of the whole selection:
    what replacing everything there does. Latents are exchanged at all tokens of an image at once.

    Args:
        dictionary: an autoencoder of one site.
        model: a wrapped model with a head.
        pairs: `mechvis.data.scene_pairs(...)`: images that differ in one factor.
        ks: how many latents of an image are exchanged at most.
        ways: greedy, random.
        head: the only head, where a row is one.
        tokens: which tokens.
        batch_size: pairs per run.
        seed: of random choices and resamples.

    Returns:
        success: the prediction is that of the reference; kept: it is, on pairs whose reference did not change it.

    Raises:
        BadData: a crosscoder or transcoder, a model without a head.
        UnknownSite, ShapeMismatch: the dictionary is about something that this model does not have.
    """
    from sae.evaluate.place import place_of
    from sae.evaluate.recovered import clean_pass, replaced

    _require_autoencoder(dictionary)
    if model.parts.head is None:
        raise BadData("this model has no head, so there is no prediction to control; for CLIP take clip.classifier.")
    (site, width), *_ = dictionary.ends.reads.items()
    place = place_of(model, site, width, head=head, tokens=tokens)
    directions, generator = dictionary.directions.double(), torch.Generator().manual_seed(seed)
    sums: dict[tuple[str, int | None], list[list[np.ndarray]]] = {}
    for start in range(0, len(pairs.clean), batch_size):
        part = slice(start, start + batch_size)
        one, other = (clean_pass(model, images[part], [place.site]) for images in (pairs.clean, pairs.corrupt))
        h, h_new = (place.take(run.activations[place.site]) for run in (one, other))
        codes, new = strengths(dictionary, h), strengths(dictionary, h_new)
        change, target = new - codes, (h_new - h).double()
        reference = _logits(replaced(model, one, {place.site: place.put(one.activations[place.site], h_new)}))
        untouched = one.logits.double()
        share = torch.from_numpy(weights(dictionary, h.flatten(0, 1))).unflatten(0, h.shape[:2])
        variants: list[tuple[str, int | None, Tensor | None]] = [("nothing", 0, None)]
        for way in ways:
            for k in ks:
                variants.append((way, k, exchange(change, target, directions, k, way, generator=generator)))
        variants.append(("everything", None, torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool)))
        for way, k, chosen in variants:
            moved = h.double() if chosen is None else h.double() + (change * chosen.to(h.device)[:, None]) @ directions
            logits = untouched
            if chosen is not None:
                logits = _logits(replaced(model, one, {place.site: place.put(one.activations[place.site], moved)}))
            size = torch.zeros(len(h)) if chosen is None else (share * chosen.cpu()[:, None]).sum(2).mean(1)
            far = (h_new - moved).double().square().sum((1, 2)) / target.square().sum((1, 2)).clamp_min(1e-300)
            hit = (logits.argmax(1) == reference.argmax(1)).double()
            moves = (untouched.argmax(1) != reference.argmax(1)).double()
            numbers = (hit, moves, _kl(reference, logits), _kl(reference, untouched), size, far)
            sums.setdefault((way, k), []).append([t.double().cpu().numpy() for t in numbers])
    table = []
    for (way, k), parts in sums.items():
        hit, moves, left, at_first, size, far = (np.concatenate(column) for column in zip(*parts, strict=True))
        for name, which in ((f"{pairs.change} (prediction moves)", moves > 0), (f"{pairs.change} (stays)", moves == 0)):
            if not which.any():
                continue
            table.append(
                {"attribute": name, "way": way, "k": k,
                 **columns("success", mean(hit[which], seed=seed)), "magnitude": float(size[which].mean()),
                 "distance": float(far[which].mean()),
                 "recovered": float(1 - left[which].sum() / max(at_first[which].sum(), 1e-300)), "n": int(which.sum())}
            )  # fmt: skip
    return _record(table, f"Control of {pairs.change} in {model.name}", seed, model=model, images=pairs.clean)


def _logits(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].double()


def _kl(reference: Tensor, found: Tensor) -> Tensor:
    p, q = reference.log_softmax(1), found.log_softmax(1)
    return (p.exp() * (p - q)).sum(1).clamp_min(0)


def _require_autoencoder(dictionary: Any) -> None:
    if dictionary.ends.kind != "autoencoder":
        raise BadData(f"latents are exchanged at one site that is read and written; this is a {dictionary.ends.kind}.")


def _record(table: list[dict], title: str, seed: int, model: Any = None, images: Any = None) -> Control:
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
