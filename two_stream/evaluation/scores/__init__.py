"""Score files, their metrics and statistics, and fusion."""
