"""Live prediction from cameras, network streams and files."""
