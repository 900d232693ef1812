"""A learned dictionary: parameters, how activations are scaled, what it reads and writes.

One type for sparse autoencoders, transcoders and crosscoders of every architecture: the architecture says how codes are
found (`sae.architectures`), the ends say which sites are read and written. Rows go in and come out as the model has
them; scaling happens inside. It is an `nn.Module`, so `.to(device)`, `.double()` and gradients work as usual.

On disk it is a folder: `cfg.json` (format, version, architecture, ends, scaling, where it was trained, checksums) and
`weights.safetensors`, both weights `[latent d]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import files
from mechvis.errors import BadData, MechvisError, NotFinite, ShapeMismatch, StoreCorrupt, unknown
from mechvis.kernels.support import Support
from sae.active import Encoder, Values, encoder
from sae.architecture import Architecture
from sae.architectures import named
from sae.ends import Ends
from sae.initial import calibrate
from sae.normaliser import OF_ROWS, Scaled, factors, require_possible, scaled
from sae.shards import WHOLE, Shards

if TYPE_CHECKING:
    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard

FORMAT = "mechvis.dictionary"
FORMAT_VERSION = 1
MANIFEST = "cfg.json"
WEIGHTS = "weights.safetensors"


class Dictionary(nn.Module):
    """Codes for activations, and activations from codes.

    Make one with `sae.train`, :func:`start` or :meth:`load`.

    Example:
        >>> from sae.architectures import TopK
        >>> rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
        >>> d = start(TopK(n_latents=32, k=4), {"site": rows})
        >>> codes = d.encode(rows)
        >>> codes.shape, int((codes > 0).sum(1).max()), d.decode(codes).shape
        (torch.Size([100, 32]), 4, torch.Size([100, 16]))
    """

    def __init__(
        self,
        architecture: Architecture,
        ends: Ends,
        parameters: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        *,
        provenance: Mapping[str, Any] | None = None,
    ):
        """See :func:`start`, which measures scales and draws parameters.

        Args:
            architecture: settings.
            ends: what is read and written.
            parameters: trained tensors by name.
            state: `scale_in [d_in]`, `scale_out [d_out]`, and what the architecture keeps.
            provenance: where it comes from.
        """
        super().__init__()
        require_possible(architecture.normalise, ends)
        self.architecture, self.ends = architecture, ends
        self.shards: Shards = WHOLE
        """Who has the other latents, while it is trained in several parts."""
        self.provenance = dict(provenance or {})
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone().contiguous()))
        for name, tensor in state.items():
            self.register_buffer(name, tensor.detach().clone())

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def n_latents(self) -> int:
        """Latents."""
        return self.architecture.n_latents

    @property
    def directions(self) -> Float[Tensor, "latent d_out"]:
        """What one unit of each latent writes, in the units of the model (up to a row's own norm)."""
        return self.architecture.rows(self) * self.scale_out

    @property
    def mine(self) -> set[str]:
        """Parameters with a row per latent: of which every part has its own, if there are several."""
        return {name for name, p in self.named_parameters() if p.ndim and len(p) == self.n_latents // self.shards.size}

    # -- use ---------------------------------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*row d_in"] | Mapping[str, Tensor]) -> Float[Tensor, "*row latent"]:
        """Codes of activations.

        Args:
            x: rows as the model has them, any leading axes; or activations by site.

        Raises:
            ShapeMismatch, BadData: another width, a missing site.
        """
        x = self._as_mine(self.ends.read(x))
        flat = self._scaled_in(x).x.reshape(-1, self.ends.d_in)
        return self.architecture.encode(self, flat).reshape(*x.shape[:-1], -1)

    def active(self, x: Float[Tensor, "row d_in"] | Mapping[str, Tensor]) -> tuple[Support, Float[Tensor, " entry"]]:
        """Codes of activations as flat lists: the places that are not zero, and the numbers there."""
        codes = self.encode(x)
        if codes.ndim != 2:
            raise ShapeMismatch(f"active codes are those of rows [row d]; got codes {list(codes.shape)}.")
        support = Support.from_mask(codes != 0)
        return support, codes[support.rows, support.latents]

    def decode(
        self, codes: Float[Tensor, "*row latent"], like: Float[Tensor, "*row d_in"] | Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "*row d_out"]:
        """What codes write, in the units of the model; several sites side by side (`ends.split` parts them).

        Args:
            codes: any leading axes.
            like: the rows that were read: needed where rows are scaled by their own norm, and by a skip connection.

        Raises:
            ShapeMismatch: codes of another number of latents.
            BadData: `like` is needed.
        """
        if codes.shape[-1] != self.n_codes:
            raise ShapeMismatch(f"codes have {self.n_codes} latents here, got {list(codes.shape)}.")
        flat = codes.reshape(-1, codes.shape[-1]).to(self.scale_in)
        read = None if like is None else self._scaled_in(self._as_mine(self.ends.read(like)))
        if read is None and (self.architecture.normalise in OF_ROWS or self.architecture.skip):
            raise BadData(
                f"normalise={self.architecture.normalise!r}, skip={self.architecture.skip}: what is written depends on "
                "the row that was read. Give it: decode(codes, like=x)."
            )
        y = self.architecture.decode(self, flat)
        if self.architecture.skip:
            y = y + read.x.reshape(-1, self.ends.d_in) @ self.W_skip.T
        y = y.reshape(*codes.shape[:-1], -1)
        return self._to_model(y, read)

    def forward(self, x: Float[Tensor, "*row d_in"] | Mapping[str, Tensor]) -> Float[Tensor, "*row d_out"]:
        """Encode and decode."""
        x = self.ends.read(x)
        return self.decode(self.encode(x), like=x)

    @property
    def n_codes(self) -> int:
        """Width of the codes."""
        return self.architecture.width(self.ends)

    # -- inside, for architectures -----------------------------------------------------------------------------------

    def encoder(self, x: Float[Tensor, "row d_in"], *, fast: bool, bf16: bool = False) -> Encoder:
        """Normalised rows times W_enc, with `b_dec` taken off where the architecture does."""
        shift = self.shards.shared(self.b_dec) if self.architecture.subtracts_bias(self.ends) else None
        return encoder(x, shift, self.W_enc, self.b_enc, fast=fast, bf16=bf16)

    def write(self, codes: Values, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
        """What codes write, normalised, with bias and skip connection."""
        y = self.shards.sum(codes.decode(self.W_dec)).add_(self.b_dec)
        return y + x @ self.W_skip.T if self.architecture.skip else y

    def normalised(self, batch: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Rows that are read and rows that have to be written, as the dictionary sees them."""
        x = self._as_mine(self.ends.read(batch))
        read = self._scaled_in(x).x
        if not self.ends.transcodes:
            return read, read
        y = self._as_mine(self.ends.written(batch))
        return read, scaled(y, list(self.ends.writes.values()), self.architecture.normalise, self.scale_out).x

    def folded(self) -> "Dictionary":
        """The same dictionary with decoder rows of norm one; a new object."""
        found = self.architecture.folded(self)
        names = {name for name, _ in self.named_parameters()}
        return Dictionary(
            self.architecture,
            self.ends,
            {name: tensor for name, tensor in found.items() if name in names},
            {name: tensor for name, tensor in found.items() if name not in names},
            provenance=self.provenance,
        )

    def _scaled_in(self, x: Tensor) -> Scaled:
        return scaled(x, list(self.ends.reads.values()), self.architecture.normalise, self.scale_in)

    def _to_model(self, y: Tensor, read: Scaled | None) -> Tensor:
        if self.architecture.normalise in OF_ROWS:
            return y * read.scale + read.shift
        return y * self.scale_out

    def _as_mine(self, x: Tensor) -> Tensor:
        return x.to(device=self.scale_in.device, dtype=self.scale_in.dtype)

    # -- files -------------------------------------------------------------------------------------------------------

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe this dictionary: see :func:`sae.card.dictionary_card`."""
        from sae.card import dictionary_card

        return dictionary_card(self, data, level=level, seed=seed)

    def save(self, folder: str | Path, *, fold: bool = True) -> Path:
        """Write the dictionary; a crash leaves the old one or the new one.

        Args:
            folder: where to.
            fold: with decoder rows of norm one, so that codes of dictionaries can be compared.

        Raises:
            NotFinite: a parameter holds NaN or Inf.
            OutputNotWritable: says what and why.
        """
        from safetensors.torch import save

        d = self.folded() if fold else self
        tensors = {name: t.detach().cpu().contiguous() for name, t in d.state_dict().items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NotFinite(f"{name} of this dictionary holds NaN or Inf; it is not saved.")
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "architecture": self.architecture.to_json(),
            **self.ends.to_json(),
            "parameters": [name for name, _ in self.named_parameters()],
            "provenance": files.plain_json(self.provenance, "provenance"),
        }
        files.write_together(Path(folder), {WEIGHTS: save(tensors)}, MANIFEST, manifest)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, device: Any = None) -> Self:
        """Read what :meth:`save` wrote, verified.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed.
            ResultMismatch: another format or a later version.
            UnknownName: an architecture that this version does not have.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a dictionary")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        data = files.read_together(folder, manifest, WEIGHTS)
        try:
            architecture = named(manifest["architecture"]["name"]).from_json(manifest["architecture"])
            tensors = load(data)
            names = manifest["parameters"]
            found = cls(
                architecture,
                Ends.from_json(manifest),
                {name: tensors[name] for name in names},
                {name: tensor for name, tensor in tensors.items() if name not in names},
                provenance=manifest["provenance"],
            )
        except (SafetensorError, MechvisError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder} does not hold what its manifest says: {error}") from error
        return found if device is None else found.to(device)

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, ends and every number."""
        import hashlib

        known = {"architecture": self.architecture.to_json(), **self.ends.to_json()}
        digest = hashlib.sha256(files.canonical_json(files.plain_json(known)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def extra_repr(self) -> str:
        """What is printed."""
        sites = ", ".join(self.ends.reads)
        if self.ends.transcodes:
            sites += f" -> {', '.join(self.ends.writes)}"
        return f"{self.architecture.NAME} {self.ends.kind} of {sites}: {self.n_latents} latents of {self.ends.d_out}"

    def __repr__(self) -> str:
        return f"Dictionary({self.extra_repr()})"

    def _repr_html_(self) -> str:
        from mechvis.show import dictionary, safely

        return safely(dictionary, self)


def start(
    architecture: Architecture,
    rows: Mapping[str, Tensor],
    *,
    reads: str | list[str] | None = None,
    writes: str | list[str] | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> Dictionary:
    """An untrained dictionary: scales are measured on some rows, parameters start as the architecture says.

    Args:
        architecture: settings.
        rows: some activations by site, `[row d]`; some thousands. Their type becomes the dictionary's.
        reads: sites that are read; all where left out.
        writes: sites that are written; what is read where left out.
        seed: of everything random.
        provenance: where the rows come from.

    Raises:
        BadData: a site is missing, or there is no row.
        NotFinite: NaN or Inf in the rows.
    """
    reads = list(rows) if reads is None else [reads] if isinstance(reads, str) else list(reads)
    writes = [writes] if isinstance(writes, str) else list(writes or [])
    for name in [*reads, *writes]:
        if name not in rows:
            raise unknown("site", name, rows)
    ends = Ends(reads={n: rows[n].shape[1] for n in reads}, writes={n: rows[n].shape[1] for n in writes})
    require_possible(architecture.normalise, ends)
    x, y = ends.read(rows), ends.written(rows)
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
    if len(x) == 0:
        raise BadData("there are no rows to start from.")
    kind = architecture.normalise
    state = {
        "scale_in": factors(x, list(ends.reads.values()), kind),
        "scale_out": factors(y, list(ends.writes.values()), kind),
        **{name: tensor.to(x.device) for name, tensor in architecture.state(ends).items()},
    }
    generator = torch.Generator().manual_seed(seed)
    x = scaled(x, list(ends.reads.values()), kind, state["scale_in"]).x
    y = scaled(y, list(ends.writes.values()), kind, state["scale_out"]).x
    parameters = architecture.parameters(ends, x, y, generator)
    state |= {name: parameters.pop(name) for name in architecture.FIXED}
    found = Dictionary(architecture, ends, parameters, state, provenance=provenance)
    if architecture.CALIBRATES and not ends.transcodes:
        calibrate(found, x, y)
    return found


def load(folder: str | Path, *, device: Any = None) -> Dictionary:
    """A saved dictionary; see :meth:`Dictionary.load`."""
    return Dictionary.load(folder, device=device)
