"""The list of published weight files, and functions that download and check them."""
