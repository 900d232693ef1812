"""mechvis: mechanistic interpretability for vision transformers and CLIP.

    import mechvis
    from mechvis import edits

    model = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=256, seed=7)
    run = model.run(images.pixels, edits=[edits.zero("blocks.3.attn.hook_z", heads=[1])])
    effects = mechvis.sweep(model, images, units="heads", edit="zero", metric="logit_diff")

Everything public is listed in `__all__` and imported when first used, so that `import mechvis` stays light.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__version__ = "0.1.0"

__all__ = publish(
    __name__,
    {
        "load": "mechvis.models.load",
        "means": "mechvis.means",
        "sweep": "mechvis.sweep",
        "harvest": "mechvis.store.harvest",
        "certified_top": "mechvis.certified",
        "decompose": "mechvis.decompose",
        "Result": "mechvis.results",
        "Record": "mechvis.record",
        "ImageSet": "mechvis.data.images",
        "HookedViT": "mechvis.hooked",
        "HookedCLIP": "mechvis.clip",
        "Face": "mechvis.face",
        "attribute": "mechvis.attribution.attribute",
        "explore": "mechvis.explorer",
    },
    (
        "attribution",
        "axes",
        "cards",
        "data",
        "edits",
        "errors",
        "faithfulness",
        "interop",
        "metrics",
        "plots",
        "removal",
        "stats",
        "store",
        "testing",
        "visualise",
    ),
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis import (
        attribution,
        axes,
        cards,
        data,
        edits,
        errors,
        faithfulness,
        interop,
        metrics,
        plots,
        removal,
        stats,
        store,
        testing,
        visualise,
    )
    from mechvis.attribution.attribute import attribute
    from mechvis.certified import certified_top
    from mechvis.clip import HookedCLIP
    from mechvis.data.images import ImageSet
    from mechvis.decompose import decompose
    from mechvis.face import Face
    from mechvis.hooked import HookedViT
    from mechvis.means import means
    from mechvis.models.load import load
    from mechvis.record import Record
    from mechvis.results import Result
    from mechvis.store.harvest import harvest
    from mechvis.sweep import sweep
