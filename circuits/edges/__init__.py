"""The edges of a transformer: who writes into the stream, who reads it, and runs in which single edges are cut."""
