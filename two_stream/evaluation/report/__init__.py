"""The report on runs and score files."""
