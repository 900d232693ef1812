"""Concepts that are learnt to be complete.

    CE(h(g(s)), y) - lam1 mean_j mean(K' largest cosines of concept j over locations) + lam2 mean_{i != j} (v_i . v_j)^2

The first term asks for completeness, the second for concepts that real locations show, the third for different ones.
Source: ConceptSHAP, methods2.md 17.1 (**C**); the released third term is a plain mean of products, which opposite
vectors please best; ours takes squares off the diagonal (X).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.errors import FailedCheck, OutOfRange
from probes.concept_tests.completeness.decoder import Decoder
from probes.concept_tests.completeness.located import Located
from probes.concept_tests.completeness.scores import concept_scores, unit_concepts


def discover_concepts(
    train: Located,
    k: int,
    *,
    threshold: float = 0.2,
    normalise: bool = True,
    against: str = "model",
    decoder: Decoder | None = None,
    near: float = 0.1,
    apart: float = 0.1,
    nearest: int = 32,
    seed: int = 0,
) -> Float[Tensor, "concept d"]:
    """Learn `k` concept vectors together with a decoder.

    Args:
        train: images to learn from; judge the concepts on others with :func:`completeness`.
        k: how many.
        threshold: of the cosine, see :func:`concept_scores`.
        normalise: likewise.
        against: the answers to reproduce, see :meth:`Located.wanted`.
        decoder: settings of g and of the training.
        near: weight of the second term (**C**: 0.1 for toys, 10 in the generic variant).
        apart: weight of the third.
        nearest: locations that the second term averages over (**C**: 32 for toys, 2 in the generic variant).
        seed: of the start and the batches.

    Returns:
        Unit vectors, not yet merged.

    Raises:
        OutOfRange: no concept asked for, more than there are locations, or negative weights.
        FailedCheck: the loss is no longer finite.

    Example:
        >>> concepts = merge_concepts(discover_concepts(train, 6))                                 # doctest: +SKIP
    """
    if k < 1 or nearest < 1 or near < 0 or apart < 0:
        raise OutOfRange(f"k={k} and nearest={nearest} are at least 1, near={near} and apart={apart} at least 0.")
    settings = decoder or Decoder()
    wanted, z = train.wanted(against), train.z
    drawn = torch.Generator().manual_seed(seed)
    # Locations of the data as a start: the second term and the threshold have something to hold on to.
    flat = z.flatten(0, 1)
    if k > len(flat):
        raise OutOfRange(f"k={k} concepts from {len(flat)} locations.")
    start = flat[torch.randperm(len(flat), generator=drawn)[:k]]
    vectors = nn.Parameter(start + 1e-3 * torch.randn(start.shape, generator=drawn).to(z))
    g = settings.build(k, z.shape[2], z, seed)
    parameters = [vectors, *g.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=settings.rate)
    eye = torch.eye(k, dtype=torch.bool, device=z.device)
    for step in range(settings.steps):
        rows = torch.randint(0, len(z), (min(settings.batch, len(z)),), generator=drawn)
        with torch.enable_grad():
            unit = nn.functional.normalize(vectors, dim=1)
            scores = concept_scores(z[rows], unit, threshold=threshold, normalise=normalise)
            cosines = nn.functional.normalize(z[rows].flatten(0, 1), dim=1) @ unit.T
            shown = cosines.topk(min(nearest, len(cosines)), dim=0).values.mean()
            alike = (unit @ unit.T)[~eye].square().mean() if k > 1 else unit.new_zeros(())
            loss = nn.functional.cross_entropy(train.tail(g(scores), rows), wanted[rows]) - near * shown
            loss = loss + apart * alike
            gradients = torch.autograd.grad(loss, parameters)
        if not torch.isfinite(loss):
            raise FailedCheck(f"the loss is {float(loss)} at step {step}; lower rate={settings.rate}.")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
    return nn.functional.normalize(vectors.detach(), dim=1)


def merge_concepts(concepts: Float[Tensor, "concept d"], cosine: float = 0.95) -> Float[Tensor, "merged d"]:
    """Concepts of which none is nearly another: of those that are alike, the first stays.

    Args:
        concepts: vectors; brought to unit length.
        cosine: above it two are one (**C**).

    Raises:
        ShapeMismatch, NotFinite, BadData: vectors that are none.
        OutOfRange: no cosine.

    Example:
        >>> merge_concepts(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).shape
        torch.Size([2, 2])
    """
    if not -1 < cosine <= 1:
        raise OutOfRange(f"cosine={cosine}: above -1 and up to 1.")
    unit = unit_concepts(concepts)
    kept: list[int] = []
    for i, vector in enumerate(unit):
        if not kept or float((unit[kept] @ vector).max()) <= cosine:
            kept.append(i)
    return unit[kept]
