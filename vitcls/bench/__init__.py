"""What the parts cost in time and memory, on the machine and the data at hand."""
