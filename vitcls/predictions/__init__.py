"""What predict writes: which rows, in which formats, how an interrupted one goes on, links by label."""
