"""Rows of keeping activations: every site, what the modules answer, and one site; time and memory.

*Every site* is what each tool keeps when nothing is said. Ours holds the attention scores; what transformer_lens calls
scores is the pattern once more, so the row *every site but scores* compares the same contents. nnsight hooks
modules, and in a model with fused attention no module answers scores or patterns; so it runs in the second row, *what
the modules answer* (embedding, norms, q, k, v, both MLP layers, what attention and MLP write, the stream after each
block), in which the others are told to keep the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from benchmarks import bounds, models
from benchmarks.forward import agree
from benchmarks.models import Place
from benchmarks.race import Contender, Goal, Task

WHATS = ("every site", "every site but scores", "what the modules answer", "one site")
ANSWERS = (
    "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_attn_out", "ln2.hook_normalized",
    "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip
"""What the modules of a block answer, in transformer_lens' names."""


def sites(name: str, what: str) -> list[str] | None:
    """Names of what is kept; None: everything."""
    layers = models.shape(name).layers
    if what.startswith("every site"):
        return None
    if what == "one site":
        return [f"blocks.{layers // 2}.attn.hook_z"]
    return ["hook_embed", *(f"blocks.{layer}.{site}" for layer in range(layers) for site in ANSWERS)]


def task(name: str, place: Place, what: str, batch: int, rounds: int, *, memory: bool) -> Task:
    """Keep activations of a batch.

    Args:
        name: the model.
        place: where.
        what: one of `WHATS`.
        batch: images.
        rounds: timings.
        memory: measure the peak memory of everyone, too.
    """
    chosen, scores = sites(name, what), what == "every site"
    only: dict[str, Any] = {} if scores else {"names_filter": _no_scores}
    if chosen is not None:
        only = {"names_filter": chosen[0] if len(chosen) == 1 else chosen}
    layer = models.shape(name).layers // 2

    def pixels() -> Tensor:
        return models.pixels(name, place, batch)

    def run() -> Callable[[], Any]:
        model, x = models.hooked(name, place), pixels()
        # `hook_result` is computed only when somebody asks for it, as in transformer_lens.
        left_out = ("hook_result",) if scores else ("hook_result", "hook_attn_scores")
        capture = chosen or [site for site in model.graph.names if not site.endswith(left_out)]
        return lambda: model.run(x, capture=capture).cache

    def with_cache(wrapped: Any) -> Callable[[], Any]:
        x = pixels()
        return lambda: wrapped.run_with_cache(x, **only)[1]

    def traced() -> Callable[[], Any]:
        wrapped, x = models.nnsight(name, place), pixels()

        def module_outputs() -> Any:
            with wrapped.trace(x) as tracer:
                cache = tracer.cache(device=None)
            return cache  # noqa: RET504  a trace is left before its values are there

        def one() -> Any:
            with wrapped.trace(x):
                z = wrapped.vit.layers[layer].attention.o_proj.input.save()
            return {"z": z}

        return one if what == "one site" else module_outputs

    def nothing() -> Callable[[], Any]:
        model, x = models.bare(name, place), pixels()
        return lambda: {"logits": model(x).logits}

    contenders = {
        "mechvis run": Contender(build=run, peer=False),
        "mechvis run_with_cache": Contender(build=lambda: with_cache(models.hooked(name, place)), peer=False),
        "transformer_lens run_with_cache": Contender(build=lambda: with_cache(models.bridge(name, place))),
    }
    if chosen is not None:
        contenders["nnsight, one value" if what == "one site" else "nnsight tracer.cache"] = Contender(build=traced)
    if models.has_prisma():
        contenders["ViT-Prisma run_with_cache"] = Contender(build=lambda: with_cache(models.prisma(name, place)))
    peers_and_ours = frozenset(contenders)
    contenders["bare model, nothing kept"] = Contender(build=nothing, peer=False)
    return Task(
        key=f"caching/{name}/{what.replace(' ', '-')}{place.label.replace(', ', '-')}",
        title=f"{name}: keep {what}, batch {batch}{place.label}",
        contenders=contenders,
        rounds=rounds,
        digest=lambda who, answer: held(answer, what == "one site" and who in peers_and_ours),
        check=lambda kept: _check(kept, place.precision),
        least=lambda kept: {
            "mechvis run": bounds.plain(
                models.shape(name), batch, kept=int(kept["mechvis run"][1] * 2**20) // place.item, item=place.item
            )
        },
        shape=name,
        precision=place.precision,
        goals=(Goal(limit=1.0), *((Goal(limit=1.0, of="memory"),) if memory else ())),
        memory=tuple(list(contenders)[:-1]) if memory else (),
        notes=() if chosen is not None else ("nnsight keeps no scores and patterns: see another row.",),
    )


def _no_scores(site: str) -> bool:
    return not site.endswith(("hook_attn_scores", "hook_result"))


def held(answer: Any, one: bool) -> tuple[int, float, Tensor | None]:
    """Entries of a cache, MiB that it keeps (memory shared by several entries counted once), and, of `one` site, it."""
    found = dict(tensors(answer))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found.values()}
    mib = sum(storages.values()) / 2**20
    return len(found), mib, next(iter(found.values())).float().cpu().flatten(2) if one else None


def tensors(answer: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of anybody's cache, by name."""
    for name in answer.keys():  # noqa: SIM118  nnsight's cache has keys, but cannot be walked through
        value = answer[name]
        value = value if isinstance(value, Tensor | Mapping) or not hasattr(value, "output") else value.output
        for i, part in enumerate(value if isinstance(value, tuple | list) else [value]):
            if isinstance(part, Tensor):
                yield f"{name}.{i}", part
            elif hasattr(part, "logits"):  # the whole model's answer
                yield f"{name}.logits", part.logits


def _check(kept: dict[str, Any], precision: str) -> list[str]:
    caches = {who: found for who, found in kept.items() if not who.startswith("bare model")}
    words = [f"{who} keeps {mib:.1f} MiB in {entries} entries." for who, (entries, mib, _) in caches.items()]
    ones = {who: value for who, (_, _, value) in caches.items() if value is not None}
    if ones:
        words.append(agree(ones, "mechvis run", precision).replace("logit", "value"))
    return words
