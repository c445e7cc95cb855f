"""Scores the views of videos with a network."""
