"""Figures and annotated videos of predictions."""
