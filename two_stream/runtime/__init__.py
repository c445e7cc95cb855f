"""Devices, processes, files, locks and terminal output; used by all layers above."""
