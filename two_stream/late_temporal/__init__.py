"""Runs, evaluators, flags and folders of LateTemporalModeling3DCNN, with the names of the published code."""
