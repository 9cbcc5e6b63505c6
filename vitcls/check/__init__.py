"""A look at the data before hours are spent on it."""
