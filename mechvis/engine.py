"""The engine under every sweep: many units x many images -> numbers per unit and image.

1. Cut the job into pieces that fit the memory budget (images outermost, then units).
2. For each piece not yet in the ledger: read its images, find what replaces the units' activations, run the wave front
   (or, as its plain twin, one full forward per unit), and let `measure` turn outputs into numbers.
3. Keep the numbers; the outputs are dropped, so a sweep over a million images needs memory for its table only.

While a piece is computed the images of the next one are read by a thread, one piece ahead and no further. Processes
that are given the same folder share the pieces (:mod:`mechvis.parallel.share`), and each returns the whole table.

A study may look at several *views* of each image at once (original, object removed, context removed): they ride in the
same batch, and `measure` sees them side by side.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.edits import Edit
from mechvis.errors import BadData, NotFinite, OutOfMemory, unknown
from mechvis.parallel.claims import Claims
from mechvis.parallel.ledger import Ledger, Piece, cut
from mechvis.parallel.share import Share
from mechvis.parallel.world import world
from mechvis.progress import track
from mechvis.units import Unit
from mechvis.wave import Replacement, bytes_per_row, rows_at_once, wave
from mechvis.wave.halves import CompiledHalves, Halves

logger = logging.getLogger(__name__)

Views = Float[Tensor, "view image channel height width"]
Measure = Callable[[Float[Tensor, "view image out"], Float[Tensor, "unit view image out"], range], dict[str, Tensor]]
"""Clean outputs, outputs per unit, positions of the images -> numbers `[unit image]` by name; a name that starts with
`clean/` holds `[image]`."""

Engine = Literal["wave", "plain", "compiled"]
ENGINES = ("wave", "plain", "compiled")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a sweep computes, apart from where and how fast."""

    model: Any
    """A wrapped model."""
    n_images: int
    """Images of the job."""
    views: Callable[[range], Views]
    """Pixels of some images, all views of each."""
    units: Sequence[Unit]
    """What to ablate, sorted by layer."""
    replace: Callable[[Views, range], Replacement]
    """What goes in their place, for the views of some images flattened to `[view*image ...]`."""
    measure: Measure
    """From outputs to numbers."""
    n_views: int = 1
    """Views per image."""
    bytes_per_image: int = 0
    """What `replace` keeps in memory per image (activations of other images, if it puts those in)."""
    base: Sequence[Unit] = ()
    """Heads that are ablated in every row, the clean one included, by the same replacement (heads already removed)."""
    plan: dict[str, Any] | None = None
    """What identifies the job in its ledger."""


def compute(
    job: Job,
    *,
    engine: Engine = "wave",
    budget: str | int | None = None,
    folder: Any = None,
    progress: bool = True,
    what: str = "sweep",
    prefetch: bool = True,
) -> dict[str, np.ndarray]:
    """All numbers of a job.

    Args:
        job: what to compute.
        engine: `wave`, `plain` (one full forward per unit: slow, and what the wave front is tested against), or
            `compiled` (the wave front with blocks compiled by `torch.compile`, see :mod:`mechvis.wave.halves`).
        budget: memory for activations, e.g. `"8GB"`; by default a share of what is free.
        folder: keep finished pieces here, and continue from them; processes that are given the same folder share them.
        progress: show a progress bar (of several processes that share a folder only the first does).
        what: its title.
        prefetch: read the images of the next piece while one is computed.

    Returns:
        `[unit image]` arrays by name, and `clean/...` arrays `[image]`.

    Raises:
        OutOfMemory: not even one image with one unit fits.
        NotFinite: an output is NaN or Inf; names unit and image.
        ResultMismatch: the folder holds another job.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if not job.units:
        raise BadData("a sweep needs at least one unit.")
    job.model._check_mode()
    images_each, units_each = cut_size(job, budget_bytes(budget, job.model.device))
    ledger = None if folder is None else Ledger(folder, job.plan or {})
    if ledger is not None:
        images_each, units_each = ledger.agree(images_each, units_each)
    pieces = cut(job.n_images, len(job.units), images_each, units_each)
    out: dict[str, np.ndarray] = {}
    halves = None if engine == "plain" else CompiledHalves() if engine == "compiled" else Halves()
    show = progress and (ledger is None or world().leads)
    with track(job.n_images * len(job.units), what, " rows", show=show) as bar, ExitStack() as held:

        def keep(piece: Piece, found: dict[str, np.ndarray]) -> None:
            _place(out, found, piece, job)
            bar.update(len(piece.images) * len(piece.units))

        if ledger is None:
            work = _Alone(pieces)
        else:
            work = Share(ledger, pieces, held.enter_context(Claims(ledger.folder)), keep)
        reader = held.enter_context(_Reader(job, ahead=prefetch))
        piece = work.take()
        while piece is not None:
            reader.begin(piece)
            following = work.take(wait=False) if prefetch else None
            views = reader.views(piece)
            if following is not None:
                reader.begin(following)
            started = time.monotonic()
            found = _with_back_off(job, piece, halves, views)
            del views
            work.done(piece, found, time.monotonic() - started)
            keep(piece, found)
            piece = following or work.take()
    return out


class _Alone:
    """All pieces in order, for a job that keeps nothing on disk."""

    def __init__(self, pieces: Sequence[Piece]):
        self.left = iter(pieces)

    def take(self, *, wait: bool = True) -> Piece | None:
        return next(self.left, None)

    def done(self, piece: Piece, found: dict[str, np.ndarray], seconds: float) -> None:
        pass


class _Reader:
    """Reads the images of pieces: in a thread of its own, or (its plain twin) when they are asked for.

    What goes wrong in the thread is raised where the piece is asked for, so an error stops the job at the same piece
    either way. Leaving the context waits for a read that has begun and drops one that has not.
    """

    def __init__(self, job: Job, *, ahead: bool):
        self.job = job
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="mechvis reader") if ahead else None
        self.coming: dict[Piece, Future] = {}

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *raised: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def begin(self, piece: Piece) -> None:
        """Start reading a piece, unless that has begun."""
        if self.pool is not None and piece not in self.coming:
            self.coming[piece] = self.pool.submit(self._read, piece)

    def views(self, piece: Piece) -> Views:
        """The images of a piece."""
        return self._read(piece) if self.pool is None else self.coming.pop(piece).result()

    @torch.no_grad()
    def _read(self, piece: Piece) -> Views:
        views = self.job.views(piece.images)
        # From pinned memory the copy to the accelerator runs beside the computation.
        pin = self.job.model.device.type == "cuda" and views.device.type == "cpu"
        return views.pin_memory() if pin else views


def _place(out: dict[str, np.ndarray], found: dict[str, np.ndarray], piece: Piece, job: Job) -> None:
    images = slice(piece.images.start, piece.images.stop)
    for name, values in found.items():
        clean = name.startswith("clean/")
        if name not in out:
            out[name] = np.full(job.n_images if clean else (len(job.units), job.n_images), np.nan, dtype=values.dtype)
        if clean:
            out[name][images] = values
        else:
            out[name][piece.units.start : piece.units.stop, images] = values


def _with_back_off(job: Job, piece: Piece, halves: Halves | None, views: Views) -> dict[str, np.ndarray]:
    """Compute a piece; on an accelerator that runs out of memory, in two parts."""
    try:
        return _compute(job, piece, halves, views)
    except torch.OutOfMemoryError as error:
        failure = str(error)
    # Outside the handler: a live traceback would keep the failed attempt's tensors.
    torch.cuda.empty_cache()
    if len(piece.images) > 1:
        middle = len(piece.images) // 2
        split = zip(_in_two(piece.images), (views[:, :middle], views[:, middle:]), strict=True)
        parts = [_with_back_off(job, Piece(half, piece.units), halves, seen) for half, seen in split]
        return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    if len(piece.units) > 1:
        parts = [_with_back_off(job, Piece(piece.images, half), halves, views) for half in _in_two(piece.units)]
        return {
            name: parts[0][name] if name.startswith("clean/") else np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
    raise OutOfMemory(f"one image with one unit does not fit the accelerator's memory: {failure}")


def _in_two(whole: range) -> tuple[range, range]:
    middle = whole.start + len(whole) // 2
    return range(whole.start, middle), range(middle, whole.stop)


@torch.no_grad()
def _compute(job: Job, piece: Piece, halves: Halves | None, views: Views) -> dict[str, np.ndarray]:
    n_views, n = views.shape[:2]
    device = job.model.device
    # The type is changed after the copy: changed before, pixels would no longer lie in pinned memory.
    seen = views.flatten(0, 1).to(device, non_blocking=device.type == "cuda").to(job.model.dtype)
    pixels = job.model.inputs(seen)
    units = [job.units[i] for i in piece.units]
    replacement = job.replace(views, piece.images)
    if halves is None:
        clean, edited = _plain(job, pixels, units, replacement)
    else:
        parts, at_once = job.model.parts, _at_once(job)
        clean, edited = wave(parts, pixels, units, replacement, base=job.base, at_once=at_once, halves=halves)
    _check_finite(clean, edited, units, piece)
    found = job.measure(clean.unflatten(0, (n_views, n)), edited.unflatten(1, (n_views, n)), piece.images)
    return {name: _array(value) for name, value in found.items()}


def _array(value: Tensor) -> np.ndarray:
    """numpy has no bfloat16."""
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()


def _at_once(job: Job) -> int | None:
    """Rows that go through a block together: on an accelerator all, on a CPU as many as fit its cache."""
    return rows_at_once(job.model.parts, _element(job)) if job.model.device.type == "cpu" else None


def _element(job: Job) -> int:
    return torch.finfo(job.model.dtype).bits // 8


def _plain(job: Job, pixels: Tensor, units: list[Unit], replacement: Replacement) -> tuple[Tensor, Tensor]:
    """One full forward per unit: the twin."""
    base = [plain_edit(unit, replacement) for unit in job.base]
    clean = job.model.run(pixels, edits=base).output
    rows = [job.model.run(pixels, edits=[*base, plain_edit(unit, replacement)]).output for unit in units]
    return clean, torch.stack(rows)


def plain_edit(unit: Unit, replacement: Replacement) -> Edit:
    """The edit that puts the replacement in a unit's place."""
    new = replacement(unit.site)
    if new is None:
        return unit.edit("zero")
    if new.shape[0] == 1:
        return unit.edit("mean_positional", values={unit.site: new[0]})
    return unit.edit("patch", values={unit.site: new})


def _check_finite(clean: Tensor, edited: Tensor, units: list[Unit], piece: Piece) -> None:
    if torch.isfinite(clean.sum()) and torch.isfinite(edited.sum()):
        return
    if not torch.isfinite(clean).all():
        row = int((~torch.isfinite(clean)).flatten(1).any(1).nonzero()[0]) % len(piece.images)
        raise NotFinite(f"the clean output of image {piece.images[row]} is NaN or Inf.")
    bad = (~torch.isfinite(edited)).flatten(2).any(-1)
    if bad.any():
        unit, row = (int(i) for i in bad.nonzero()[0])
        raise NotFinite(
            f"ablating {units[unit].name} gives NaN or Inf on image {piece.images[row % len(piece.images)]}."
        )


def cut_size(job: Job, budget: int) -> tuple[int, int]:
    """Images and units per piece that fit the budget."""
    kept, working = bytes_per_row(job.model.parts, _element(job))
    views, at_once = job.n_views, _at_once(job)
    all_units = (1 + len(job.units)) * views
    rows, most = budget // (kept + working), job.n_images
    if job.bytes_per_image:
        most = min(most, max(1, budget // (2 * job.bytes_per_image)))
    if at_once is not None:
        group = max(at_once, views)
        if rows >= group:
            rows = (budget - group * working) // kept
        # More images per piece than go through a block together would not be faster.
        most = min(most, max(1, group // views))
    if rows >= all_units:
        return max(1, min(most, rows // all_units)), len(job.units)
    units = rows // views - 1
    if units < 1:
        needed = 2 * views * (kept + working)
        raise OutOfMemory(
            f"one image with one unit needs about {needed / 2**20:.3g} MiB for activations, the budget is "
            f"{budget / 2**20:.3g} MiB. Raise budget=."
        )
    return 1, units


def budget_bytes(budget: str | int | None, device: torch.device) -> int:
    """Memory for activations in bytes.

    By default half of what is free on an accelerator. On a CPU a quarter of what is free, at most 512 MiB: a process
    that takes too much is killed instead of told, and larger pieces are not faster. Heads of three layers of a ViT-B/16
    on 8 images took 12.2 s (90 MB), 11.9 (150), 11.4 (300), 11.5 (600), 12.0 (1200): one piece holds few groups or
    many, a block sees the same group (see `mechvis.wave.rows_at_once`).

    Raises:
        BadData: not a size such as "8GB".
    """
    if isinstance(budget, int) and budget > 0:
        return budget
    if isinstance(budget, str):
        units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
        text = budget.strip().upper()
        digits = text.rstrip("BKMGI ")
        try:
            size = int(float(digits) * units[text[len(digits) :].strip() or "B"])
        except (ValueError, KeyError, OverflowError):
            size = 0
        if size > 0:
            return size
    elif budget is None:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0] // 2
        return min(free_memory() // 4, 2**29)
    raise BadData(f"budget={budget!r} is not a size; write for example budget='8GB'.")


def free_memory() -> int:
    """Free main memory in bytes (4 GiB where the system does not say)."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30
