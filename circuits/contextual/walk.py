"""One walk of a pair (beta, gamma) through the parts of any family, in the order of the forward pass.

The walk knows the architecture; what an operation does to a pair is left to `Ops`, of which there are two: `batched`
(many sources at once, beta only, gamma by difference) and `plain` (one source, both halves written out, the slow
truth). At every site the walk stops by: there a source's value is put in and whoever wants to look may.

Sites are those of the hooked model, so that `beta + gamma` can be compared with a run at each of them. Scores, patterns
and norm scales are no sums and have no pair; head results are left to whoever multiplies z by W_O.

`direct` paths: what a block writes carries beta only where the source itself is in that half of the block. A target
then sees what the source wrote into the stream, and nothing that others made of it. An attention pooling has no way
around it, so it counts as read-out and is walked as ever.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from circuits.contextual.affine import TOLERANCE, Shape, shape_of
from circuits.contextual.rules import Rules
from mechvis import block as plain
from mechvis.errors import RefusedMethod
from mechvis.models.parts import AttentionParts, BlockParts, Layout, PoolingParts, TowerParts
from mechvis.norms import gain_and_bias, statistics

P = TypeVar("P")

POOL = "pool."
"""How the sites of an attention pooling begin."""


@runtime_checkable
class Ops(Protocol[P]):
    """What can be done to pairs."""

    rules: Rules
    direct: bool
    known: dict[str, Any]
    """What maps were found to be, by name."""

    def total(self, x: P) -> Tensor:
        """`beta + gamma`."""
        ...

    def enter(self, layer: int, x: P) -> P:
        """Sources of this layer begin."""
        ...

    def at(self, site: str, x: P) -> P:
        """A site: sources are put in, watchers look."""
        ...

    def put(self, site: str, x: P) -> P:
        """The same without anybody looking."""
        ...

    def wants(self, site: str) -> bool:
        """Does anybody look at this site?"""
        ...

    def involved(self, start: str) -> bool:
        """Is there a source or a watcher at a site whose name starts like this?"""
        ...

    def sourced(self, start: str) -> bool:
        """Is there a source at a site whose name starts like this?"""
        ...

    def rest(self, total: Tensor) -> P:
        """Something of which the source has no part."""
        ...

    def add(self, x: P, y: P, *, block_output: bool = False) -> P:
        """A residual addition."""
        ...

    def linear(self, f: Callable, x: P, shape: Shape, need: tuple[bool, ...], *, mlp: bool = False) -> tuple[P, ...]:
        """Affine maps of one input."""
        ...

    def difference(self, f: Callable, x: P, need: tuple[bool, ...]) -> tuple[P, ...]:
        """Any function: gamma goes through it, beta is what the total has more."""
        ...

    def norm(self, norm: nn.Module, x: P) -> P:
        """LayerNorm or RMSNorm."""
        ...

    def act(self, f: Callable, xs: tuple[P, ...]) -> P:
        """An activation of one or more pre-activations."""
        ...

    def cosine(self, head: Any, x: P) -> P:
        """A zero-shot head."""
        ...

    def place(self, attn: AttentionParts, q: P, k: P, layout: Layout) -> tuple[P, P]:
        """Rotary positions."""
        ...

    def mix(self, attn: AttentionParts, q: P, k: P, v: P, layout: Layout) -> P:
        """Attention."""
        ...

    def each(self, f: Callable[[Tensor], Tensor], x: P) -> P:
        """A linear rearrangement of both halves alike."""
        ...


def walk(parts: TowerParts, ops: Ops[P], x: P, *, start: int, layout: Layout, pick: Callable, stop: int | None) -> P:
    """Carry a pair from the stream before block `start` to the output.

    Args:
        parts: the model's.
        ops: what happens to pairs.
        x: the stream before block `start`.
        start: first block.
        layout: what the blocks need to know of the image's size.
        pick: the tokens that the read-out needs, of a tensor `[... image token d_model]`.
        stop: end before this block, because nobody looks at anything later; None: go on to the output.
    """
    n_layers = len(parts.blocks)
    for layer in range(start, n_layers if stop is None else stop):
        x = _block(ops, parts.blocks[layer], f"blocks.{layer}.", ops.enter(layer, x), layout)
    return x if stop is not None else _read_out(ops, parts, ops.enter(n_layers, x), pick)


def _block(ops: Ops[P], block: BlockParts, at: str, x: P, layout: Layout) -> P:
    x = ops.at(at + "hook_resid_pre", x)
    if ops.direct and not any(ops.involved(at + name) for name in ("ln1.", "attn.", "hook_attn_out")):
        x = ops.add(x, ops.rest(plain.attention(block, ops.total(x), layout)))
    else:
        normal = ops.at(at + "ln1.hook_normalized", through(ops, at + "ln1", block.ln1, x))
        x = ops.add(x, _attention(ops, block.attn, block.scale1, at, normal, layout))
    x = ops.at(at + "hook_resid_mid", x)
    if ops.direct and not any(ops.involved(at + name) for name in ("ln2.", "mlp.", "hook_mlp_out")):
        x = ops.add(x, ops.rest(plain.mlp(block, ops.total(x))), block_output=True)
    else:
        x = ops.add(x, _mlp(ops, block, at, x), block_output=True)
    return ops.at(at + "hook_resid_post", x)


def _attention(
    ops: Ops[P], attn: AttentionParts, scale: Any, at: str, normal: P, layout: Layout, latents: Tensor | None = None
) -> P:
    """One attention's write; `latents`: learned queries, of which no source has a part."""
    here = at + "attn."
    split = ops.rules.pattern != "total"
    see_q, see_k = (any(ops.wants(f"{here}hook_{name}{w}") for name in ("", "rot_")) for w in "qk")
    if latents is None:
        (q,) = several(ops, here + "hook_q", lambda x: (attn.q(x),), normal, (split or see_q,))
    else:
        q = ops.rest(attn.q(latents))
    k, v = several(ops, here + "hook_k and hook_v", attn.kv, normal, (split or see_k, True))
    q, k, v = (ops.at(f"{here}hook_{w}", x) for w, x in zip("qkv", (q, k, v), strict=True))
    if attn.rotate is not None:
        q, k = ops.place(attn, q, k, layout)
        q, k = (ops.at(f"{here}hook_rot_{w}", x) for w, x in zip("qk", (q, k), strict=True))
    z = ops.mix(attn, q, k, v, layout)
    if attn.after is not None:
        z = ops.each(lambda t: t.flatten(-2), ops.at(here + "hook_mix", z))
        z = through(ops, here + "after", attn.after, z)
        z = ops.each(lambda t: t.unflatten(-1, (attn.n_heads, attn.d_head)), z)
    z = ops.at(here + "hook_z", z)

    def write(z: P) -> P:
        out = through(ops, here + "out", attn.out, ops.each(lambda t: t.flatten(-2), z))
        return through(ops, at + "scale1", scale, out)

    out = ops.at(at + "hook_attn_out", write(z))
    if not ops.direct or at == POOL:
        return out
    if not any(ops.sourced(at + name) for name in ("attn.", "hook_attn_out")):
        return ops.rest(ops.total(out))
    return ops.put(at + "hook_attn_out", write(ops.put(here + "hook_z", ops.rest(ops.total(z)))))


def _mlp(ops: Ops[P], block: BlockParts, at: str, mid: P) -> P:
    normal = ops.at(at + "ln2.hook_normalized", through(ops, at + "ln2", block.ln2, mid))
    need = (True, True) if block.gated else (True,)
    pre = several(ops, at + "mlp.hook_pre", block.mlp_in, normal, need, mlp=True)
    names = ("hook_pre", "hook_pre_linear") if block.gated else ("hook_pre",)
    pre = tuple(ops.at(f"{at}mlp.{name}", x) for name, x in zip(names, pre, strict=True))
    post = ops.act((lambda gate, linear: block.act(gate) * linear) if block.gated else block.act, pre)
    if block.mlp_norm is not None:
        post = through(ops, at + "mlp.mlp_norm", block.mlp_norm, ops.at(at + "mlp.hook_mid", post))
    post = ops.at(at + "mlp.hook_post", post)

    def write(post: P) -> P:
        out = through(ops, at + "mlp.out", block.mlp_out, post, mlp=True)
        return through(ops, at + "scale2", block.scale2, out)

    out = ops.at(at + "hook_mlp_out", write(post))
    if not ops.direct or at == POOL:
        return out
    if not any(ops.sourced(at + name) for name in ("mlp.", "hook_mlp_out")):
        return ops.rest(ops.total(out))
    return ops.put(at + "hook_mlp_out", write(ops.put(at + "mlp.hook_post", ops.rest(ops.total(post)))))


def _read_out(ops: Ops[P], parts: TowerParts, x: P, pick: Callable) -> P:
    def norm(x: P) -> P:
        return ops.at("ln_final.hook_normalized", through(ops, "ln_final", parts.ln_final, x))

    x = norm(x) if parts.norm == "tokens" else x
    x = ops.each(pick, x)
    x = norm(x) if parts.norm == "read" else x
    if parts.pooling is not None:
        x = _latents(ops, parts.pooling, x)
    x = through(ops, "pool", parts.pool, x)
    if parts.norm == "pooled":
        x = ops.each(lambda t: t.squeeze(-2), norm(ops.each(lambda t: t.unsqueeze(-2), x)))
    x = ops.at("hook_pooled", x)
    if parts.project is not None:
        x = ops.at("hook_embedding", through(ops, "project", parts.project, x))
    if parts.head is not None:
        x = ops.at("hook_logits", through(ops, "head", parts.head, x))
    return x


def _latents(ops: Ops[P], pooling: PoolingParts, x: P) -> P:
    latents = pooling.latents(len(ops.total(x)))
    out = _attention(ops, pooling.attn, None, POOL, x, None, latents)
    return out if pooling.mlp is None else ops.add(out, _mlp(ops, pooling.mlp, POOL, out))


# what a part is


def through(ops: Ops[P], what: str, f: Any, x: P, *, mlp: bool = False) -> P:
    """One part of the model, whatever it is: nothing, a norm, a zero-shot head, an affine map, another function.

    Raises:
        RefusedMethod: the rules ask to look into something that is none of the first four.
    """
    if f is None or isinstance(f, nn.Identity):
        return x
    if hasattr(f, "prompts"):
        return ops.cosine(f, x)
    if isinstance(f, nn.Module) and hasattr(f, "eps"):
        _check_norm(ops, what, f, x)
        return ops.norm(f, x)
    return several(ops, what, f, x, (True,), mlp=mlp)[0]


def several(ops: Ops[P], what: str, f: Callable, x: P, need: tuple[bool, ...], *, mlp: bool = False) -> tuple[P, ...]:
    """A map with one output or more, of which only those that are needed are split.

    Raises:
        RefusedMethod: a needed output is no affine map, and the rules need one.
    """
    if what not in ops.known:
        ops.known[what] = shape_of(f, ops.total(x))
    shape: Shape = ops.known[what]
    straight = tuple(n and a for n, a in zip(need, shape.affine, strict=True))
    crooked = tuple(n and not a for n, a in zip(need, shape.affine, strict=True))
    if any(crooked) and not (ops.rules.bias == "rest" and ops.rules.ln == "rest"):
        raise RefusedMethod(
            f"{what} of this model is neither a linear map nor a norm that can be looked into (a norm of queries or "
            f"keys, a maximum, a tanh?), and {ops.rules} would have to: they share its bias or hold its statistics. "
            "Use rules='default', or others with bias='rest' and ln='rest': those need only what comes out of it."
        )
    if not any(crooked):
        return ops.linear(f, x, shape, straight, mlp=mlp)
    other = ops.difference(f, x, crooked)
    if not any(straight):
        return other
    mine = ops.linear(f, x, shape, straight, mlp=mlp)
    return tuple(b if c else a for a, b, c in zip(mine, other, crooked, strict=True))


def _check_norm(ops: Ops[P], what: str, norm: nn.Module, x: P) -> None:
    """Holding the statistics of a norm needs a norm that is put together as we think; tried once."""
    if ops.rules.ln == "rest" or ops.known.setdefault(what, False):
        return
    total = ops.total(x)
    centred, scale = statistics(norm, total)
    expected, own = norm(total), gain_and_bias(norm, centred / scale)
    gap, largest = float((expected - own).abs().max()), float(expected.abs().max())
    if gap > TOLERANCE.get(total.dtype, 1e-4) * largest:
        raise RefusedMethod(
            f"{what} of this model ({type(norm).__name__}) is no LayerNorm or RMSNorm of gain and bias (they differ by "
            f"{gap:.1e}), so ln='total' cannot hold its statistics. Use ln='rest' (rules='default')."
        )
    ops.known[what] = True
