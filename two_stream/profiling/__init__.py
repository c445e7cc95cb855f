"""Costs of a model and its data: parameters, multiply-adds, time and memory, in total and for each stage."""
