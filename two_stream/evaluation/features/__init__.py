"""Stored features: written once per video, read by head trainings and evaluations."""
