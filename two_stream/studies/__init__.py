"""Studies: many runs as one question, and what the numbers allow to be said."""
