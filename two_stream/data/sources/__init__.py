"""Where the pixels of clips come from: frame folders, video files, parts of videos, packed shards."""
