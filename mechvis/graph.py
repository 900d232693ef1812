"""The hook graph: every site of a model with its axes, and which site reads which.

Names and shapes are TransformerLens'. Circuits are sub-graphs of this one; edits and captures are resolved on it, so a
name that matches nothing is an error with suggestions, never an empty result.
"""

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mechvis.errors import OutOfRange, UnknownSite, nearest
from mechvis.models.parts import TowerParts


@dataclass(frozen=True, kw_only=True)
class SiteInfo:
    """One named place in the forward pass."""

    name: str
    """Canonical name, e.g. `blocks.3.attn.hook_z`."""
    axes: tuple[str, ...]
    """Words of `mechvis.axes`, e.g. `("row", "token", "head", "d_head")`."""
    sizes: tuple[int | None, ...]
    """Size per axis; None for the row axis and where it depends on the input."""
    layer: int | None
    """Block index, or None before and after the blocks."""
    reads: tuple[str, ...]
    """Sites whose values this one is computed from."""
    on_demand: bool = False
    """Computed only when asked for (scores, pattern, result)."""

    @property
    def token_axis(self) -> int | None:
        """Position of the token axis, or None."""
        return self.axes.index("token") if "token" in self.axes else None

    @property
    def head_axis(self) -> int | None:
        """Position of the head axis, or None."""
        return self.axes.index("head") if "head" in self.axes else None


@dataclass(frozen=True)
class HookGraph:
    """All sites of one tower in the order they fire."""

    sites: dict[str, SiteInfo]
    aliases: dict[str, str] = field(default_factory=dict)
    n_layers: int = 0

    def __iter__(self) -> Iterator[SiteInfo]:
        return iter(self.sites.values())

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, name: str) -> bool:
        return name in self.sites or name in self.aliases

    def __getitem__(self, name: str) -> SiteInfo:
        return self.sites[self.resolve(name)]

    @property
    def names(self) -> list[str]:
        """Canonical names in firing order."""
        return list(self.sites)

    def resolve(self, name: str) -> str:
        """Canonical name of a canonical name or native module path.

        Raises:
            UnknownSite: with the three nearest names.
        """
        if name in self.sites:
            return name
        if name in self.aliases:
            return self.aliases[name]
        raise self._unknown(name)

    def match(self, patterns: str | Iterable[str]) -> list[str]:
        """Canonical names that match any of the glob patterns, in firing order.

        Raises:
            UnknownSite: for the first pattern that matches nothing.

        Example:
            >>> graph.match("blocks.*.attn.hook_z")      # doctest: +SKIP
            ['blocks.0.attn.hook_z', 'blocks.1.attn.hook_z', ...]
        """
        wanted: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
            if pattern in self:
                wanted.add(self.resolve(pattern))
                continue
            found = fnmatch.filter(self.sites, pattern)
            found += [self.aliases[alias] for alias in fnmatch.filter(self.aliases, pattern)]
            if not found:
                raise self._unknown(pattern)
            wanted.update(found)
        return [name for name in self.sites if name in wanted]

    def readers(self, name: str) -> list[str]:
        """Sites that read this one."""
        name = self.resolve(name)
        return [site.name for site in self if name in site.reads]

    def _unknown(self, name: str) -> UnknownSite | OutOfRange:
        words = name.split(".")
        if len(words) > 1 and words[0] == "blocks" and words[1].lstrip("-").isdigit():
            layer = int(words[1])
            if not 0 <= layer < self.n_layers:
                return OutOfRange(f"layer {layer} in {name!r}: this model has layers 0 to {self.n_layers - 1}.")
        names = nearest(name, [*self.sites, *self.aliases])
        return UnknownSite(
            f"no site matches {name!r}. Nearest: {', '.join(names)}. print(model.graph) lists all "
            f"{len(self)} sites; * and ? are wildcards."
        )

    def __repr__(self) -> str:
        lines, last = [f"HookGraph: {len(self)} sites, {self.n_layers} layers"], self.n_layers - 1
        for site in self:
            if site.layer is not None and 0 < site.layer < last:
                continue
            shape = " ".join(
                axis if size is None else f"{axis}={size}" for axis, size in zip(site.axes, site.sizes, strict=True)
            )
            lines.append(f"  {site.name:<36} [{shape}]{'  (on demand)' if site.on_demand else ''}")
            if site.layer == 0 and site.name.endswith("hook_resid_post") and last > 1:
                lines.append(f"  ... blocks.1 to blocks.{last - 1} alike ...")
        return "\n".join(lines)


def build(parts: TowerParts) -> HookGraph:
    """The graph of a tower, from its parts."""
    sites: dict[str, SiteInfo] = {}
    n_tokens = parts.n_tokens if parts.modality == "image" else None
    stream = (("row", "token", "d_model"), (None, n_tokens, parts.d_model))
    token_scalar = (("row", "token", "one"), (None, n_tokens, 1))

    def site(name: str, kind: tuple, reads: Iterable[str], layer: int | None = None, on_demand: bool = False):
        axes, sizes = kind
        sites[name] = SiteInfo(name=name, axes=axes, sizes=sizes, layer=layer, reads=tuple(reads), on_demand=on_demand)
        return name

    last = site("hook_embed", stream, ())
    for layer, block in enumerate(parts.blocks):
        at = f"blocks.{layer}."
        heads, width = block.attn.n_heads, block.attn.d_head
        per_head = (("row", "token", "head", "d_head"), (None, n_tokens, heads, width))
        square = (("row", "head", "query", "key"), (None, heads, n_tokens, n_tokens))
        results = (("row", "token", "head", "d_model"), (None, n_tokens, heads, parts.d_model))
        hidden = (("row", "token", "d_mlp"), (None, n_tokens, block.d_mlp))
        pre = site(at + "hook_resid_pre", stream, [last], layer)
        scale = site(at + "ln1.hook_scale", token_scalar, [pre], layer)
        normal = site(at + "ln1.hook_normalized", stream, [pre, scale], layer)
        q, k, v = (site(f"{at}attn.hook_{w}", per_head, [normal], layer) for w in "qkv")
        scores = site(at + "attn.hook_attn_scores", square, [q, k], layer, on_demand=True)
        pattern = site(at + "attn.hook_pattern", square, [scores], layer, on_demand=True)
        z = site(at + "attn.hook_z", per_head, [pattern, v], layer)
        result = site(at + "attn.hook_result", results, [z], layer, on_demand=True)
        out = site(at + "hook_attn_out", stream, [result], layer)
        mid = site(at + "hook_resid_mid", stream, [pre, out], layer)
        scale = site(at + "ln2.hook_scale", token_scalar, [mid], layer)
        normal = site(at + "ln2.hook_normalized", stream, [mid, scale], layer)
        mlp_pre = site(at + "mlp.hook_pre", hidden, [normal], layer)
        post = site(at + "mlp.hook_post", hidden, [mlp_pre], layer)
        mlp_out = site(at + "hook_mlp_out", stream, [post], layer)
        last = site(at + "hook_resid_post", stream, [mid, mlp_out], layer)
    n_read = n_tokens if parts.norm_first or parts.reads is None else len(parts.reads)
    scale = site("ln_final.hook_scale", (("row", "token", "one"), (None, n_read, 1)), [last])
    normal = site(
        "ln_final.hook_normalized", (("row", "token", "d_model"), (None, n_read, parts.d_model)), [last, scale]
    )
    n_pooled = len(parts.reads) if isinstance(parts.reads, tuple) else 1
    last = site("hook_pooled", (("row", "d_model"), (None, parts.d_model * n_pooled)), [normal])
    if parts.project is not None:
        last = site("hook_embedding", (("row", "d_embed"), (None, None)), [last])
    if parts.head is not None:
        site("hook_logits", (("row", "class"), (None, len(parts.class_names) or None)), [last])
    aliases = {alias: name for alias, name in parts.aliases.items() if name in sites}
    return HookGraph(sites, aliases, len(parts.blocks))
