"""Clip networks turned into networks that take a stream frame by frame, with the same weights."""
