"""How fast the parts are, on the machine and the data at hand."""
