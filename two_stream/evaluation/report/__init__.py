"""The report page of runs and score files."""
