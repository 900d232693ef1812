"""Where a subspace lies in a wrapped model: one token row, some tokens side by side, a pooled row, or one head's z.

A place cuts rows `[image width]` out of a site's activation and puts changed ones back, and turns any function of such
rows into an ordinary edit, so that an interchange composes with whatever else a run does.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown

IN_BLOCK = (
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
"""Sites of a block where a forward can take up again."""

POOLED = "hook_pooled"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Part of a site: some tokens, and at `attn.hook_z` one head. Made by :func:`place_of`."""

    site: str
    """Canonical name of the site."""
    tokens: tuple[int, ...] | None
    """Tokens, side by side in the rows; None where the site has no token axis."""
    head: int | None = None
    """Head, at `attn.hook_z`."""

    @property
    def name(self) -> str:
        """In words: `blocks.3.hook_resid_post, token 0`."""
        words = [self.site]
        if self.head is not None:
            words.append(f"head {self.head}")
        if self.tokens is not None:
            few = len(self.tokens) == 1
            words.append(f"token {self.tokens[0]}" if few else f"{len(self.tokens)} tokens side by side")
        return ", ".join(words)

    def take(self, activation: Tensor) -> Float[Tensor, "row width"]:
        """Rows out of the site's activation."""
        if self.tokens is None:
            return activation
        part = activation[:, list(self.tokens)]
        part = part if self.head is None else part[:, :, self.head]
        return part.flatten(1)

    def put(self, activation: Tensor, rows: Float[Tensor, "row width"]) -> Tensor:
        """A copy of the activation with these rows in place; gradients reach both."""
        if self.tokens is None:
            return rows
        tokens = list(self.tokens)
        new = activation.clone()
        if self.head is None:
            new[:, tokens] = rows.unflatten(1, (len(tokens), -1))
        else:
            new[:, tokens, self.head] = rows.unflatten(1, (len(tokens), -1))
        return new

    def edit(self, fn: Callable[[Tensor], Tensor], *, rows: Sequence[int] | None = None) -> Edit:
        """An ordinary edit that replaces the rows of this place by `fn(rows)`.

        Args:
            fn: `[row width]` to the same shape.
            rows: rows of the batch; None for all.
        """

        def replaced(piece: Tensor) -> Tensor:
            # [row token (head=1) d], whatever the site.
            changed = fn(rearrange(piece, "row ... -> row (...)"))
            if changed.shape != (len(piece), piece[0].numel()):
                raise ShapeMismatch(
                    f"{self.name}: the edit got rows {[len(piece), piece[0].numel()]} and returned "
                    f"{list(changed.shape)}."
                )
            return changed.to(piece.dtype).reshape(piece.shape)

        heads = None if self.head is None else [self.head]
        return edits.call(self.site, replaced, rows=rows, tokens=self.tokens, heads=heads)

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def place_of(
    model: Any, site: str, *, tokens: str | int | Sequence[int] | None = None, head: int | None = None
) -> Place:
    """A place in a wrapped model, checked.

    Args:
        model: a wrapped image model.
        site: a residual site, `attn.hook_z` (with `head`), `hook_attn_out`, `hook_mlp_out` or `mlp.hook_post` of a
            block, or `hook_pooled`.
        tokens: indices, or `cls`, `registers`, `prefix`, `patches`, `all`; None: the tokens that the read-out takes
            (mostly CLS).
        head: at `attn.hook_z`.

    Raises:
        UnknownSite, UnknownName, OutOfRange, BadData.

    Example:
        >>> place_of(model, "blocks.3.hook_resid_post", tokens="cls").name       # doctest: +SKIP
        'blocks.3.hook_resid_post, token 0'
    """
    parts, found = model.parts, model.graph[site]
    if parts.modality != "image":
        raise BadData(f"subspaces are for image towers; {parts.family} takes text.")
    ending = found.name.split(".", 2)[2] if found.name.startswith("blocks.") else found.name
    if ending not in (*IN_BLOCK, POOLED):
        raise unknown("site for a subspace", ending, (*IN_BLOCK, POOLED))
    if (ending == "attn.hook_z") != (head is not None):
        what = "needs head= (one head has a subspace of its own)" if head is None else "has no head axis"
        raise BadData(f"{found.name} {what}.")
    if head is not None and not 0 <= head < parts.blocks[found.layer].attn.n_heads:
        n = parts.blocks[found.layer].attn.n_heads
        raise OutOfRange(f"head {head} does not exist at {found.name}, which has {n} (0 to {n - 1}).")
    if ending == POOLED:
        if tokens is not None:
            raise BadData(f"{POOLED} has no token axis; leave tokens= out.")
        return Place(site=found.name, tokens=None)
    return Place(site=found.name, tokens=_tokens(parts, tokens), head=head)


def _tokens(parts: Any, tokens: str | int | Sequence[int] | None) -> tuple[int, ...]:
    n, prefix = parts.n_tokens, parts.prefix
    if tokens is None:
        if not isinstance(parts.reads, tuple):
            raise BadData("this model's read-out takes all tokens; say which ones: tokens='all', 'patches' or indices.")
        return parts.reads
    if isinstance(tokens, str):
        groups = {
            "cls": [i for i, word in enumerate(prefix) if word.startswith("cls")],
            "registers": [i for i, word in enumerate(prefix) if word.startswith("register")],
            "prefix": range(len(prefix)),
            "patches": range(len(prefix), n),
            "all": range(n),
        }
        if tokens not in groups:
            raise unknown("token group", tokens, groups)
        if not groups[tokens]:
            raise BadData(f"this model has no {tokens} token; its prefix is {list(prefix)}.")
        return tuple(groups[tokens])
    chosen = (tokens,) if isinstance(tokens, int) else tuple(int(token) for token in tokens)
    if not chosen or len(set(chosen)) != len(chosen):
        raise BadData(f"tokens={list(chosen)}: at least one token, none of them twice.")
    if outside := [token for token in chosen if not 0 <= token < n]:
        raise OutOfRange(f"token {outside[0]} does not exist; there are {n} (0 to {n - 1}).")
    return chosen
