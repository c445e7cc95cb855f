"""Decodes videos: one reader over several decoder backends."""
