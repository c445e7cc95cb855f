"""Conversion of clip networks to networks that process one frame at a time."""
