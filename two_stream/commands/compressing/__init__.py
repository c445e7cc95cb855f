"""One module per method of `two-stream compress`."""
