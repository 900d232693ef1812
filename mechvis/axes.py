"""The words for axes and units. One word per thing; every shape in every signature is made of these.

============  =====================================================================================================
word          meaning
============  =====================================================================================================
image         an input image; batch rows that are images carry this name
row           a row of an expanded batch: one image under one edit (a sweep runs many rows per image)
channel       colour channel of the input
height width  pixels of the input
token         position in the residual stream: prefix tokens (CLS, registers, distillation) first, then patches
patch         an image token: one cell of the patch grid, row-major
layer         transformer block, counted from 0
head          attention head inside a block
query key     token positions as destination and source of attention (an axis pair of the pattern)
d_model       width of the residual stream
d_head        width of one head
d_mlp         width of the MLP's hidden layer (its units are neurons)
d_embed       width of the joint image-text space (CLIP)
class         an output of the head: a class, or a text prompt of a zero-shot head
latent        a feature of a learned dictionary
entry         one active latent of one row, in a flat list of them
k             active latents of a row
unit          one thing a sweep ablates: a head, a neuron, a layer's write, a residual token
site          a named place in the forward pass (a hook point)
concept       a direction or set of examples with a name
effect        metric(clean) - metric(edited); positive means that the ablated unit supported the behaviour
============  =====================================================================================================

The aliases below are for annotation only. They are checked at run time in the tests, never in use.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Pixels = Float[Tensor, "image channel height width"]
Mask = Bool[Tensor, "image height width"]
Residual = Float[Tensor, "row token d_model"]
PerHead = Float[Tensor, "row token head d_head"]
HeadResult = Float[Tensor, "row token head d_model"]
Pattern = Float[Tensor, "row head query key"]
Hidden = Float[Tensor, "row token d_mlp"]
Pooled = Float[Tensor, "row d_model"]
Logits = Float[Tensor, "row class"]
Labels = Int[Tensor, " image"]
