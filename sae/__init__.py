"""Learned dictionaries of features: sparse autoencoders, transcoders and crosscoders on activations of vision models.

    store = mechvis.harvest(model, images, "blocks.2.hook_resid_post", out="runs/acts")
    run = sae.train(store, sae.BatchTopK(n_latents=2048, k=32), sae.Training(tokens=10_000_000), out="runs/sae")
    run.dictionary.encode(rows), run.dictionary.save("my-sae")

* `train`, `Training`, `Job`: the one trainer. `from_store`, `from_model`: where rows come from. `parallel`: processes.
* `architectures`: how codes are found and learned, one file each. `Dictionary`: what comes out; `load` opens one.
* `baselines`, `evaluate`: what it has to beat, and how good it is; more measures are in `sae.evaluation`.
* `splice`: a model with a dictionary in it, whose latents are sites like others; edits are in `sae.splicing`.
* `latent_attribution`, `describe_latents`, `explain_by_steering`, `feature_flow`, `model_diff`: what latents do.
* `latent_pages`, `dashboard`: latents to look at. `formats`: files of other libraries, the Hub.
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
        "from_store": "sae.data.activations",
        "from_model": "sae.data.activations",
        "Together": "sae.data.together",
        "TensorRows": "sae.data.tensors",
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
        "evaluate": "sae.evaluation.table",
        "splice": "sae.splicing.splice",
        "dashboard": "sae.dashboards.page",
        "latent_pages": "sae.dashboards.collect",
        "latent_attribution": "sae.attribution.latent_effects",
        "read_out_projection": "sae.attribution.projection",
        "describe_latents": "sae.attribution.descriptions",
        "explain_by_steering": "sae.steering.pure",
        "informed_top_k": "sae.steering.informed",
        "feature_flow": "sae.flow.layers",
        "model_diff": "sae.diffing.compare",
        "layer_shares": "sae.shares",
    },
    modules=(
        "architectures",
        "baselines",
        "dashboards",
        "diffing",
        "evaluation",
        "flow",
        "formats",
        "parallel",
        "splicing",
        "steering",
    ),
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae import architectures, baselines, formats, parallel
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
    from sae.attribution import describe_latents, latent_attribution, read_out_projection
    from sae.dashboards import dashboard, latent_pages
    from sae.data import TensorRows, Together, from_model, from_store
    from sae.dictionary import Dictionary, load, start
    from sae.diffing import model_diff
    from sae.evaluation import evaluate
    from sae.flow import feature_flow
    from sae.shares import layer_shares
    from sae.splicing import splice
    from sae.steering import explain_by_steering, informed_top_k
    from sae.training.job import Job
    from sae.training.log import wandb_tracker
    from sae.training.settings import Training
    from sae.training.train import Trained, train
