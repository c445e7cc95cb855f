"""Finished runs: loading them, scoring videos, and recording how the scores were computed."""
