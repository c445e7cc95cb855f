"""Studies: runs of several variants, and statistics that compare them."""
