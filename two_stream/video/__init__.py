"""Decodes videos, computes optical flow, and writes both to folders. This package does not import torch."""
