"""What `mechvis selftest` checks of this package: dictionaries whose answer is known, in a few seconds."""

from mechvis.selftest import Check

_ATOMS, _WIDTH, _ACTIVE = 48, 48, 3


def checks(seed: int) -> list[Check]:
    """The sparse step is the dense one; planted atoms are found again, random directions are not.

    Args:
        seed: of rows, atoms and starting values.
    """
    return [_gradients(seed), *_recovered(seed)]


def _gradients(seed: int) -> Check:
    import torch

    from sae.architecture import Step
    from sae.architectures import BatchTopK
    from sae.dictionary import start

    rows = torch.randn(64, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    d = start(BatchTopK(n_latents=40, k=4, k_aux=5), {"site": rows}, seed=seed)
    dead = torch.arange(40) % 3 == 0
    found = []
    for fast in (True, False):
        d.zero_grad()
        x, y = d.normalised({"site": rows})
        d.architecture.loss(d, x, y, Step(dead=dead, n_dead=int(dead.sum()), fast=fast)).total.backward()
        found.append({name: p.grad.clone() for name, p in d.named_parameters()})
    error = max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0])
    return Check(
        name="BatchTopK: gradients over active latents beside dense ones, with dead latents",
        expected="<= 1e-10",
        measured=f"{error:.1e}",
        ok=error <= 1e-10,
    )


def _recovered(seed: int) -> list[Check]:
    import torch

    from mechvis.testing import planted_dict
    from sae.architectures import TopK
    from sae.evaluation.recovery import recovery
    from sae.training.settings import Training
    from sae.training.train import train

    planted = planted_dict(8000, concepts=_ATOMS, width=_WIDTH, active=_ACTIVE, noise=0.05, equal=False, seed=seed)
    rows = torch.as_tensor(planted.vectors).float()
    settings = Training(tokens=120_000, batch=512, lr=2e-2, seed=seed)
    d = train(rows, TopK(n_latents=72, k=_ACTIVE), settings, progress=False).dictionary
    found = recovery(d, planted.concepts)
    return [
        Check(
            name="TopK: mean cosine of planted atoms and the latents nearest to them",
            expected=">= 0.95",
            measured=f"{found.found:.3f}",
            ok=found.found >= 0.95,
        ),
        Check(
            name="TopK: random directions instead",
            expected="< 0.6",
            measured=f"{found.random:.3f}",
            ok=found.random < 0.6,
        ),
    ]
