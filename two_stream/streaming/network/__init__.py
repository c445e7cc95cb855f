"""Clip networks converted to networks that take one frame at a time."""
