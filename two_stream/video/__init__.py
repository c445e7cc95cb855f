"""Video files to frames, frames to optical flow, both to folders on disk. Imports no torch."""
