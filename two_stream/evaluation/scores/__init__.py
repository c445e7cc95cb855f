"""Score files, metrics, statistics and fusion."""
