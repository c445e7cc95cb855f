"""Extracts RGB frames and optical flow from videos into folders."""
