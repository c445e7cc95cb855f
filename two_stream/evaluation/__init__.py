"""Evaluation of trained networks: scoring, prediction, score files, metrics, fusion and reports."""
