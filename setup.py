"""Adds the folders `settings` and `weights` to the package; everything else is in setup.cfg."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["two_stream*"]), "two_stream.settings", "two_stream.weights"])
