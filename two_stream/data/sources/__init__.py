"""Sources of frames: frame folders, video files, parts of videos, and packed shards."""
