"""Finished runs: loading, scoring, and how their scores were made."""
