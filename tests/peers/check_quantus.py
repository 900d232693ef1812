"""Our metrics beside those of Quantus 0.6, where its own are right: the same draws, the same maps, the same numbers.

    PYTHONPATH=. python tests/peers/check_quantus.py

in an environment with quantus (and what it imports: scikit-image, opencv, lazy_loader) beside what mechvis needs.
Prints a table; ends with an error if anything is off by more than 1e-6 of the largest number. Quantus draws from
numpy's global generator, so its draws are recorded and given to ours.
"""

import sys
import warnings
from unittest import mock

import numpy as np
import quantus
import torch
from torch import Tensor, nn

from mechvis.faithfulness import (
    Answers,
    Entropy,
    FunctionGame,
    Mprt,
    PointingGame,
    RankAccuracy,
    RelevanceMass,
    Sparseness,
    TargetRandomisation,
)
from mechvis.faithfulness.subsets import effects_of, pearson, spearman, sums_over
from mechvis.target import Target

TOLERANCE = 1e-6
N, SIDE, CLASSES = 12, 5, 2
PIXELS = SIDE * SIDE


class Double(nn.Module):
    """Quantus hands over float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def model() -> nn.Module:
    """Pixels of one channel to two classes, no straight line."""
    torch.manual_seed(0)
    return (
        nn.Sequential(Double(), nn.Flatten(), nn.Linear(PIXELS, 20), nn.Tanh(), nn.Linear(20, CLASSES)).double().eval()
    )


def images() -> Tensor:
    return torch.randn(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()


def labels() -> Tensor:
    return torch.arange(N) % CLASSES


def explained(one: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Gradient x input `[image patch]`."""
    x = x.clone().requires_grad_(True)
    score = one(x).gather(1, classes[:, None]).sum()
    return (torch.autograd.grad(score, x)[0] * x).detach().flatten(1)


def explain_func(model, inputs, targets, **_):
    """The same as Quantus wants it."""
    maps = explained(model, torch.as_tensor(inputs).double(), torch.as_tensor(targets).long())
    return maps.view(-1, 1, SIDE, SIDE).numpy()


def game(one: nn.Module) -> FunctionGame:
    """Every pixel is a patch; zero in its place."""
    x = images().flatten(1)

    def outputs(masks: Tensor) -> Tensor:
        with torch.no_grad():
            rows = (masks * x[:, None]).flatten(0, 1)
            return one(rows.view(-1, 1, SIDE, SIDE)).unflatten(0, masks.shape[:2])

    return FunctionGame(function=outputs, grid=(SIDE, SIDE), target=Target(classes=labels()))


def common(one: nn.Module, maps: Tensor | None = None, **more) -> dict:
    given = explained(one, images(), labels()) if maps is None else maps
    return {
        "model": one,
        "x_batch": images().numpy(),
        "y_batch": labels().numpy(),
        "a_batch": given.view(N, 1, SIDE, SIDE).numpy().copy(),
        "device": "cpu",
        **more,
    }


def faithfulness_correlation(similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Theirs and ours."""
    one, runs, size, drawn = model(), 60, 6, []
    choice = np.random.choice

    def recorded(*args, **kwargs):
        drawn.append(choice(*args, **kwargs))
        return drawn[-1]

    metric = quantus.FaithfulnessCorrelation(
        similarity_func=getattr(quantus.similarity_func, f"correlation_{similarity}"),
        nr_runs=runs,
        subset_size=size,
        perturb_func=quantus.perturb_func.batch_baseline_replacement_by_indices,
        perturb_baseline=0.0,
        return_aggregate=False,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    with mock.patch.object(np.random, "choice", recorded):
        theirs = metric(**common(one), softmax=False, batch_size=N)
    places = torch.from_numpy(np.stack(drawn)).view(runs, N, size).transpose(0, 1)
    sets = torch.zeros(N, runs, PIXELS, dtype=torch.bool).scatter_(2, places, True)
    said = sums_over(explained(one, images(), labels()), sets)
    effects = effects_of(Answers(game(one)), sets, None)
    return np.array(theirs), {"pearson": pearson, "spearman": spearman}[similarity](said, effects).numpy()


def random_logit() -> tuple[np.ndarray, np.ndarray]:
    """With two classes there is one other class."""
    one = model()
    metric = quantus.RandomLogit(
        num_classes=CLASSES,
        similarity_func=quantus.similarity_func.correlation_spearman,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    theirs = metric(**common(one), explain_func=explain_func, batch_size=N)
    ours = TargetRandomisation().measure(
        explained(one, images(), labels()), lambda classes: explained(one, images(), classes), labels(), CLASSES
    )
    return np.array(theirs), ours.values


def parameter_randomisation() -> tuple[np.ndarray, np.ndarray]:
    """Their cascade of models, both correlations: every step and the last."""
    one = model()
    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman,
        layer_order="top_down",
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    theirs = metric(**common(one), explain_func=explain_func, batch_size=N)
    wrapped = quantus.helpers.model.pytorch_model.PyTorchModel(one, channel_first=True)
    steps = []
    for name, other in wrapped.get_random_layer_generator(order="top_down", seed=42):
        maps = explained(other, images(), labels())  # it changes this copy at the next step
        steps.append((name, lambda maps=maps: maps))
    ours = Mprt().measure(explained(one, images(), labels()), lambda maps: maps, steps)
    names = [name for name, _ in steps]
    return np.stack([np.array(theirs[name]) for name in names], 1), ours.curves["spearman"]


def on_the_object(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Localisation of maps without negative values."""
    one = model()
    maps = torch.rand(N, PIXELS, generator=torch.Generator().manual_seed(3)).double()
    masks = torch.rand(N, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) < 0.3
    theirs, ours = {
        "pointing": (quantus.PointingGame, PointingGame),
        "mass": (quantus.AttributionLocalisation, RelevanceMass),
        "rank": (quantus.RelevanceRankAccuracy, RankAccuracy),
    }[kind]
    found = theirs(abs=False, normalise=False, disable_warnings=True)(
        **common(one, maps), s_batch=masks[:, None].numpy(), batch_size=N
    )
    return np.array(found, dtype=float), ours().measure(maps, masks, (SIDE, SIDE)).values


def shape_of_maps(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Gini coefficient and entropy of maps without negative values."""
    maps = torch.rand(N, PIXELS, generator=torch.Generator().manual_seed(5)).double()
    theirs, ours = {"gini": (quantus.Sparseness, Sparseness), "entropy": (quantus.Complexity, Entropy)}[kind]
    found = theirs(abs=False, normalise=False, disable_warnings=True)(**common(model(), maps), batch_size=N)
    return np.array(found), ours().measure(maps).values


CHECKS = {
    "faithfulness correlation, Pearson": lambda: faithfulness_correlation("pearson"),
    "faithfulness correlation, Spearman": lambda: faithfulness_correlation("spearman"),
    "RandomLogit, Spearman": random_logit,
    "MPRT, Spearman, every step": parameter_randomisation,
    "pointing game": lambda: on_the_object("pointing"),
    "relevance mass": lambda: on_the_object("mass"),
    "rank accuracy": lambda: on_the_object("rank"),
    "Gini coefficient": lambda: shape_of_maps("gini"),
    "entropy": lambda: shape_of_maps("entropy"),
}


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    worst = 0.0
    for name, check in CHECKS.items():
        theirs, ours = check()
        away = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
        # Their Gini coefficient adds 1e-7 to every value.
        allowed = 1e-5 if name.startswith("Gini") else TOLERANCE
        worst = max(worst, away / allowed)
        sys.stdout.write(f"{name:40s} n={len(ours):3d}  {away:.1e}  (allowed {allowed:.0e})\n")
    if not worst <= 1:
        raise SystemExit("a metric is off")


if __name__ == "__main__":
    main()
