"""From scores, or from the model itself, to a circuit."""
