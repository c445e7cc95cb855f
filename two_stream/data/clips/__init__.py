"""Training clips and evaluation views: frame sampling, transforms, data sets, loaders."""
