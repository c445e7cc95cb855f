"""Stored features: written once for each video, then read to train and evaluate heads."""
