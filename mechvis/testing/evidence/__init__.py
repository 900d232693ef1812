"""Evidence whose place is known: do attribution methods find it?

Two suites with the truth per image and class on the patch grid. A is wired by hand (which patch and head matter is
a theorem), B is trained (a certificate shows by re-drawing images that the planted evidence is what the model uses).
They reverse the order of some methods, so both are run.

=====================  ================================================================================================
name                   what it is for
=====================  ================================================================================================
`score`                one method on a suite: AUROC, average precision, hit rate, contest with decoys
`table_of`             several methods
`score_maps`           the same for maps that you made yourself
`PlantedScores`        what they return
`load`, `Planted`      a model with planted evidence: `.model`, `.ask(n, seed)`, `.certificate`, `.heads`
`Asked`                images, explained classes, true patches, decoys
`folder_of`            the Hugging Face folder of a trained one
`variants_of`          variants of a suite; `seeds_of`: bundled models of a variant
`VARIANTS`, `variant`  the trained tasks: generators, truth, checks
`certify`              measure a certificate
`wired`                a model of suite A with its truth; `head_effects`: effects of its heads
`BAD`                  explainers that are wrong in a known way; `GOOD`: exact ones; `LIMITED`: honest ones
=====================  ================================================================================================

`python -m mechvis.testing.evidence.train --variant object --seed 0 --out DIR` trains one again.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "score": "mechvis.testing.evidence.score",
        "table_of": "mechvis.testing.evidence.score",
        "score_maps": "mechvis.testing.evidence.score",
        "PlantedScores": "mechvis.testing.evidence.score",
        "load": "mechvis.testing.evidence.planted",
        "Planted": "mechvis.testing.evidence.planted",
        "Asked": "mechvis.testing.evidence.planted",
        "folder_of": "mechvis.testing.evidence.planted",
        "variants_of": "mechvis.testing.evidence.planted",
        "seeds_of": "mechvis.testing.evidence.planted",
        "SUITE_VERSION": "mechvis.testing.evidence.planted",
        "VARIANTS": "mechvis.testing.evidence.names",
        "variant": "mechvis.testing.evidence.names",
        "Variant": "mechvis.testing.evidence.task",
        "Scenes": "mechvis.testing.evidence.scenes",
        "certify": "mechvis.testing.evidence.certificate",
        "BAD": "mechvis.testing.evidence.bad",
        "GOOD": "mechvis.testing.evidence.bad",
        "LIMITED": "mechvis.testing.evidence.bad",
        "wired": "mechvis.testing.evidence.wired",
        "head_effects": "mechvis.testing.evidence.wired",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.testing.evidence.bad import BAD, GOOD, LIMITED
    from mechvis.testing.evidence.certificate import certify
    from mechvis.testing.evidence.names import VARIANTS, variant
    from mechvis.testing.evidence.planted import (
        SUITE_VERSION,
        Asked,
        Planted,
        folder_of,
        load,
        seeds_of,
        variants_of,
    )
    from mechvis.testing.evidence.scenes import Scenes
    from mechvis.testing.evidence.score import PlantedScores, score, score_maps, table_of
    from mechvis.testing.evidence.task import Variant
    from mechvis.testing.evidence.wired import head_effects, wired
