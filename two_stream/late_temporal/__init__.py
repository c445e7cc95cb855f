"""Runs, evaluators, flags and folders of LateTemporalModeling3DCNN, in its own words."""
