"""Work in pieces: what is done, what is left, and how it is put together again."""
