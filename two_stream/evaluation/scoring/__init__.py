"""Scoring of videos with a network."""
