"""A circuit as a picture, and as JSON for other viewers."""
