"""Packs data sets into tar shards."""
