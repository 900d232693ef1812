"""Circuits read off the weights and patterns of heads: what a head could do, before anything is ablated.

==================================  ====================================================================================
`ov`, `qk`, `biases`                the two circuits of a head as factored matrices, the norm's gain folded on request
`read_out`, `written`               from the stream to classes or CLIP texts; what a head writes there
`composition`                       how much of what a head reads is written by earlier heads, beside chance
`copying_scores`                    does a head write what it reads?
`directions`                        singular directions of W_V W_O, W_O or an MLP's W_out
`read_as_images`, `read_as_words`   what they read, as patches; what they write, as classes or texts
`head_roles`, `top_roles`           where heads look, over images and against controls
`positional_scores`                 how much of a pattern positions alone explain
`report_heads`                      roles or positional scores as a page
==================================  ====================================================================================

Numbers off the weights are a `WeightTable`, numbers over images a `mechvis.Result`. None of them is an effect.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "biases": "circuits.weights.ov_qk",
        "ov": "circuits.weights.ov_qk",
        "qk": "circuits.weights.ov_qk",
        "ReadOut": "circuits.weights.read_out",
        "read_out": "circuits.weights.read_out",
        "written": "circuits.weights.read_out",
        "composition": "circuits.weights.composition",
        "copying_scores": "circuits.weights.copying",
        "Directions": "circuits.weights.directions",
        "directions": "circuits.weights.directions",
        "read_as_images": "circuits.weights.as_images",
        "read_as_words": "circuits.weights.as_words",
        "head_roles": "circuits.weights.roles",
        "top_roles": "circuits.weights.roles",
        "positional_scores": "circuits.weights.positional",
        "report_heads": "circuits.weights.report",
        "WeightTable": "circuits.weights.table",
        "load_weights": "circuits.weights.table",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.weights.as_images import read_as_images
    from circuits.weights.as_words import read_as_words
    from circuits.weights.composition import composition
    from circuits.weights.copying import copying_scores
    from circuits.weights.directions import Directions, directions
    from circuits.weights.ov_qk import biases, ov, qk
    from circuits.weights.positional import positional_scores
    from circuits.weights.read_out import ReadOut, read_out, written
    from circuits.weights.report import report_heads
    from circuits.weights.roles import head_roles, top_roles
    from circuits.weights.table import WeightTable, load_weights
