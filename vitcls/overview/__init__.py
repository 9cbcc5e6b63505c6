"""A look at the runs that there are, without torch."""
