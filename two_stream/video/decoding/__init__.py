"""Decodes videos with one of several decoder backends."""
