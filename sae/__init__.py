"""Learned dictionaries of features: sparse autoencoders, transcoders and crosscoders on activations of vision models.

    store = mechvis.harvest(model, images, "blocks.2.hook_resid_post", out="runs/acts")
    run = sae.train(store, sae.BatchTopK(n_latents=2048, k=32), sae.Training(tokens=10_000_000), out="runs/sae")
    run.dictionary.encode(rows), run.dictionary.save("my-sae")

* `train`, `Training`, `Job`: the one trainer. `from_store`, `from_model`: where rows come from. `parallel`: processes.
* `architectures`: how codes are found and learned, one file each. `Dictionary`: what comes out; `load` opens one.
* `baselines`, `evaluate`: what it has to beat, and how good it is. `diffing`: two models compared by a crosscoder.
* `splice`, `attribution`, `steering`, `flow`: dictionaries inside a model. `dashboard`: latents to look at.
* `formats`: files of other libraries, the Hub.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "train": "sae.training.train",
        "Trained": "sae.training.train",
        "Training": "sae.training.settings",
        "Job": "sae.training.job",
        "wandb_tracker": "sae.training.log",
        "Dictionary": "sae.dictionary",
        "start": "sae.dictionary",
        "load": "sae.dictionary",
        "from_store": "sae.data",
        "from_model": "sae.data",
        "Together": "sae.data",
        "TensorRows": "sae.data",
        "ReLU": "sae.architectures.relu",
        "Gated": "sae.architectures.gated",
        "PAnneal": "sae.architectures.p_anneal",
        "JumpReLU": "sae.architectures.jumprelu",
        "TopK": "sae.architectures.topk",
        "BatchTopK": "sae.architectures.batch_topk",
        "Matryoshka": "sae.architectures.matryoshka",
        "NestedK": "sae.architectures.nested_k",
        "MatchingPursuit": "sae.architectures.matching_pursuit",
        "Archetypal": "sae.architectures.archetypal",
        "Sparsemax": "sae.architectures.sparsemax",
        "Crosscoder": "sae.architectures.crosscoder",
        "BatchTopKCrosscoder": "sae.architectures.batch_topk_crosscoder",
        "CrossLayerTranscoder": "sae.architectures.cross_layer",
        "Universal": "sae.architectures.universal",
    },
    modules=(
        "architectures",
        "attribution",
        "baselines",
        "dashboard",
        "diffing",
        "evaluate",
        "flow",
        "formats",
        "parallel",
        "splice",
        "steering",
    ),
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae import (
        architectures,
        attribution,
        baselines,
        dashboard,
        diffing,
        evaluate,
        flow,
        formats,
        parallel,
        splice,
        steering,
    )
    from sae.architectures import (
        Archetypal,
        BatchTopK,
        BatchTopKCrosscoder,
        Crosscoder,
        CrossLayerTranscoder,
        Gated,
        JumpReLU,
        MatchingPursuit,
        Matryoshka,
        NestedK,
        PAnneal,
        ReLU,
        Sparsemax,
        TopK,
        Universal,
    )
    from sae.data import TensorRows, Together, from_model, from_store
    from sae.dictionary import Dictionary, load, start
    from sae.training.job import Job
    from sae.training.log import wandb_tracker
    from sae.training.settings import Training
    from sae.training.train import Trained, train
