"""Which patches does a score come from: attribution methods on the model's own sites, aware of the token grid.

* `attribute(model, images, method, target=...)`: maps `[image down across]` by any method, checked: an `Attribution`.
* methods are values with settings (`GradCam(layer=2)`), one a file in `methods/`, listed by name in `METHODS`.
* `Method`, `Maps`, `Claims`, `Question`: what one needs to write one's own.

A map is a claim. `found.card(data)` (`mechvis.cards`) measures how far it can be believed.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "attribute": "mechvis.attribution.attribute",
        "Attribution": "mechvis.attribution.attribution",
        "METHODS": "mechvis.attribution.names",
        "method": "mechvis.attribution.names",
        "Method": "mechvis.attribution.method",
        "Maps": "mechvis.attribution.method",
        "Claims": "mechvis.attribution.method",
        "Question": "mechvis.attribution.question",
        "ActTimesGrad": "mechvis.attribution.methods.act_x_grad",
        "RandomMap": "mechvis.attribution.methods.controls",
        "CentrePrior": "mechvis.attribution.methods.controls",
        "InputNorm": "mechvis.attribution.methods.controls",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.attribution.attribute import attribute
    from mechvis.attribution.attribution import Attribution
    from mechvis.attribution.method import Claims, Maps, Method
    from mechvis.attribution.methods.act_x_grad import ActTimesGrad
    from mechvis.attribution.methods.controls import CentrePrior, InputNorm, RandomMap
    from mechvis.attribution.names import METHODS, method
    from mechvis.attribution.question import Question
