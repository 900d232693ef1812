"""Subspaces: in which directions of an activation is a variable, and is that more than an accuracy (methods2.md 16)?

    tail = subspace.site_tail(model, images, "blocks.3.hook_resid_post")
    study = subspace.subspace_study(tail, subspace.label_variable(images), ks=(1, 2, 4, 7))
    study                                                # accuracy, baselines and diagnosis side by side
    model.run(pixels, edits=[study.edit(study.take(model, sources))])

An interchange accuracy of 1.0 does not say that the model uses the subspace, nor that there is one only. So a study
always comes with baselines and with the illusion diagnostics.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Accuracy": "circuits.subspace.accuracy",
        "accuracy_of": "circuits.subspace.accuracy",
        "Boundless": "circuits.subspace.boundless",
        "BoundlessSettings": "circuits.subspace.boundless",
        "train_boundless": "circuits.subspace.boundless",
        "DasSettings": "circuits.subspace.das",
        "Trained": "circuits.subspace.das",
        "train_das": "circuits.subspace.das",
        "Diagnosis": "circuits.subspace.diagnosis",
        "diagnose": "circuits.subspace.diagnosis",
        "mean_difference_rows": "circuits.subspace.directions",
        "pca_rows": "circuits.subspace.directions",
        "probe_rows": "circuits.subspace.directions",
        "random_rows": "circuits.subspace.directions",
        "Drawer": "circuits.subspace.draws",
        "Draws": "circuits.subspace.draws",
        "interchange": "circuits.subspace.interchange",
        "orthonormal": "circuits.subspace.interchange",
        "Manifold": "circuits.subspace.manifold",
        "Place": "circuits.subspace.place",
        "place_of": "circuits.subspace.place",
        "RowSpace": "circuits.subspace.row_space",
        "effective_row_space": "circuits.subspace.row_space",
        "linear_row_space": "circuits.subspace.row_space",
        "scene_variable": "circuits.subspace.scene_variable",
        "Splits": "circuits.subspace.splits",
        "split_images": "circuits.subspace.splits",
        "train_several": "circuits.subspace.several",
        "SubspaceStudy": "circuits.subspace.study",
        "load_subspace_study": "circuits.subspace.study",
        "subspace_study": "circuits.subspace.subspace_study",
        "Tail": "circuits.subspace.tail",
        "read_tail": "circuits.subspace.tail",
        "site_tail": "circuits.subspace.vit_tail",
        "Variable": "circuits.subspace.variable",
        "label_variable": "circuits.subspace.variable",
        "table_variable": "circuits.subspace.variable",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.subspace.accuracy import Accuracy, accuracy_of
    from circuits.subspace.boundless import Boundless, BoundlessSettings, train_boundless
    from circuits.subspace.das import DasSettings, Trained, train_das
    from circuits.subspace.diagnosis import Diagnosis, diagnose
    from circuits.subspace.directions import mean_difference_rows, pca_rows, probe_rows, random_rows
    from circuits.subspace.draws import Drawer, Draws
    from circuits.subspace.interchange import interchange, orthonormal
    from circuits.subspace.manifold import Manifold
    from circuits.subspace.place import Place, place_of
    from circuits.subspace.row_space import RowSpace, effective_row_space, linear_row_space
    from circuits.subspace.scene_variable import scene_variable
    from circuits.subspace.several import train_several
    from circuits.subspace.splits import Splits, split_images
    from circuits.subspace.study import SubspaceStudy, load_subspace_study
    from circuits.subspace.subspace_study import subspace_study
    from circuits.subspace.tail import Tail, read_tail
    from circuits.subspace.variable import Variable, label_variable, table_variable
    from circuits.subspace.vit_tail import site_tail
