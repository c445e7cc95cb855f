"""Statistics of a study: panels, comparisons, fusions and notes."""
