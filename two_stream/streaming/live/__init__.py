"""Live prediction from cameras, streams and files."""
