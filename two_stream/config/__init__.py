"""Settings: the typed schema and the YAML loader. Imports no torch."""
