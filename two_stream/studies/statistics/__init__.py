"""Statistics of a study: panels, comparisons, fusions, remarks."""
