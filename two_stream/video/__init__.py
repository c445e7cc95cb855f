"""Decodes videos, computes optical flow, and writes frames and flow to folders. This package does not import torch."""
