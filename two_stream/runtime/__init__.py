"""Machine, files and terminal: what every layer above may lean on."""
