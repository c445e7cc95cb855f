"""Stored features: written once per video, read by head training runs and evaluations."""
