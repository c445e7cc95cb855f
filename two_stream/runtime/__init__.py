"""Devices, processes, files, locks and terminal output, used by the rest of the package."""
