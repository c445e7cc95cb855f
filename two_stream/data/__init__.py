"""Split lists, frame sampling, transforms, data sets and loaders."""
