"""The shape that all planted models share."""

D_MODEL, LAYERS, HEADS, D_MLP = 48, 2, 4, 96
