"""Studies: training runs of several variants, and statistics that compare the variants."""
