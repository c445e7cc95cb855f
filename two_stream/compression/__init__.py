"""Smaller and faster networks from trained runs by pruning, quantisation and distillation."""
