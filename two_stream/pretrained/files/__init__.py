"""Published weight files: the list of them, downloads and checks."""
