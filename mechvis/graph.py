"""The hook graph: every site of a model with its axes, and which site reads which.

Names and shapes are TransformerLens'. Circuits are sub-graphs of this one; edits and captures are resolved on it, so a
name that matches nothing is an error with suggestions, never an empty result.
"""

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from mechvis.errors import OutOfRange, UnknownSite, nearest
from mechvis.models.parts import AttentionParts, BlockParts, SpliceParts, TowerParts


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
            # Sites first: timm's own paths look alike (`blocks.0.attn.proj`), and `blocks.*.attn.*` means the sites.
            found = fnmatch.filter(self.sites, pattern)
            found = found or [self.aliases[alias] for alias in fnmatch.filter(self.aliases, pattern)]
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
    draw = _Drawing()
    n_tokens = parts.n_tokens if parts.modality == "image" else None
    d_model = parts.d_model
    stream = (("row", "token", "d_model"), (None, n_tokens, d_model))
    last = draw("hook_embed", stream, ())
    for layer, block in enumerate(parts.blocks):
        draw.layer, at = layer, f"blocks.{layer}."
        pre = draw(at + "hook_resid_pre", stream, [last])
        normal = draw.norm(at + "ln1.", n_tokens, d_model, pre)
        out = draw.attention(at, block.attn, "token", n_tokens, n_tokens, d_model, [normal] * 2)
        mid = draw(at + "hook_resid_mid", stream, [pre, out])
        out = draw.mlp(at, block, "token", n_tokens, d_model, mid)
        last = draw(at + "hook_resid_post", stream, [mid, out])
    draw.layer = None
    n_read = n_tokens if parts.norm == "tokens" or parts.reads is None else 1
    if isinstance(parts.reads, tuple) and parts.norm == "read":
        n_read = len(parts.reads)
    if parts.norm != "pooled":
        last = draw.norm("ln_final.", n_read, d_model, last)
    if (pooling := parts.pooling) is not None:
        n, width = pooling.n_latents, pooling.d_out
        # The latents are learned: queries depend on no site.
        n_key = n_tokens if pooling.keys == "token" else n_tokens - len(parts.prefix)
        out = draw.attention("pool.", pooling.attn, "latent", n, n_key, width, [None, last], pooling.keys)
        last = [out] if pooling.mlp is None else [out, draw.mlp("pool.", pooling.mlp, "latent", n, width, out)]
    d_pooled = parts.d_pooled or d_model * (len(parts.reads) if isinstance(parts.reads, tuple) else 1)
    last = last if isinstance(last, list) else [last]
    if parts.norm == "pooled":
        last = [draw.norm("ln_final.", 1, d_pooled, *last)]
    last = draw("hook_pooled", (("row", "d_model"), (None, d_pooled)), last)
    if parts.project is not None:
        last = draw("hook_embedding", (("row", "d_embed"), (None, None)), [last])
    if parts.head is not None:
        draw("hook_logits", (("row", "class"), (None, len(parts.class_names) or None)), [last])
    aliases = {alias: name for alias, name in parts.aliases.items() if name in draw.sites}
    sites = _spliced(draw.sites, parts.splices) if parts.splices else draw.sites
    return HookGraph(sites, aliases, len(parts.blocks))


def _spliced(sites: dict[str, SiteInfo], splices: Iterable[SpliceParts]) -> dict[str, SiteInfo]:
    """The sites with those of dictionaries after the activations that they write, and read by what reads these."""
    at = {splice.site: splice for splice in splices}
    found: dict[str, SiteInfo] = {}
    for name, site in sites.items():
        reads = []
        for read in site.reads:
            splice = at.get(read)
            if splice is None or splice.error or splice.tokens is not None:
                reads.append(read)
            if splice is not None:
                reads += [extra for extra in (splice.latents_site, splice.error_site) if extra is not None]
        found[name] = replace(site, reads=tuple(reads))
        if (splice := at.get(name)) is None:
            continue
        lead = [(a, n) for a, n in zip(site.axes, site.sizes, strict=True) if a in ("row", "token")]
        axes, sizes = zip(*lead, ("latent", splice.n_latents), strict=True)
        common = {"layer": site.layer, "on_demand": splice.error}
        found[splice.latents_site] = SiteInfo(
            name=splice.latents_site, axes=axes, sizes=sizes, reads=(splice.reads,), **common
        )
        if splice.error_site is not None:
            found[splice.error_site] = SiteInfo(
                name=splice.error_site, axes=site.axes, sizes=site.sizes, reads=(name, splice.latents_site), **common
            )
    return found


class _Drawing:
    """Sites of a graph as they are added, in firing order."""

    def __init__(self):
        self.sites: dict[str, SiteInfo] = {}
        self.layer: int | None = None

    def __call__(self, name: str, kind: tuple, reads: Iterable[str], on_demand: bool = False) -> str:
        axes, sizes = kind
        self.sites[name] = SiteInfo(
            name=name, axes=axes, sizes=sizes, layer=self.layer, reads=tuple(reads), on_demand=on_demand
        )
        return name

    def norm(self, at: str, n: int | None, width: int, *reads: str, axis: str = "token") -> str:
        scale = self(at + "hook_scale", (("row", axis, "one"), (None, n, 1)), reads)
        return self(at + "hook_normalized", (("row", axis, "d_model"), (None, n, width)), [*reads, scale])

    def attention(
        self,
        at: str,
        attn: AttentionParts,
        axis: str,
        n: int | None,
        n_key: int | None,
        width: int,
        reads: list,
        key_axis: str = "token",
    ) -> str:
        """Sites of one attention; `axis` is that of its queries, `reads` what queries and keys are computed from."""
        heads, key_reads = attn.n_heads, [reads[1]]
        query_reads = [] if reads[0] is None else [reads[0]]
        of_query = (("row", axis, "head", "d_head"), (None, n, heads, attn.d_head))
        of_key = (("row", key_axis, "head", "d_head"), (None, n_key, heads, attn.d_head))
        square = (("row", "head", "query" if axis == "token" else axis, "key"), (None, heads, n, n_key))
        q = self(at + "attn.hook_q", of_query, query_reads)
        k, v = (self(f"{at}attn.hook_{w}", of_key, key_reads) for w in "kv")
        if attn.rotate is not None:
            q, k = self(at + "attn.hook_rot_q", of_query, [q]), self(at + "attn.hook_rot_k", of_key, [k])
        scores = self(at + "attn.hook_attn_scores", square, [q, k], on_demand=True)
        pattern = self(at + "attn.hook_pattern", square, [scores], on_demand=True)
        mixed = [pattern, v] if attn.after is None else [self(at + "attn.hook_mix", of_query, [pattern, v])]
        z = self(at + "attn.hook_z", of_query, mixed)
        results = (("row", axis, "head", "d_model"), (None, n, heads, width))
        result = self(at + "attn.hook_result", results, [z], on_demand=True)
        return self(at + "hook_attn_out", (("row", axis, "d_model"), (None, n, width)), [result])

    def mlp(self, at: str, block: BlockParts, axis: str, n: int | None, width: int, mid: str) -> str:
        hidden = (("row", axis, "d_mlp"), (None, n, block.d_mlp))
        normal = self.norm(at + "ln2.", n, width, mid, axis=axis)
        post = [self(at + "mlp.hook_pre", hidden, [normal])]
        if block.gated:
            post.append(self(at + "mlp.hook_pre_linear", hidden, [normal]))
        if block.mlp_norm is not None:
            post = [self(at + "mlp.hook_mid", hidden, post)]
        post = self(at + "mlp.hook_post", hidden, post)
        return self(at + "hook_mlp_out", (("row", axis, "d_model"), (None, n, width)), [post])
