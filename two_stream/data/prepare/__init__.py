"""Makes data set records and split lists, and checks them."""
