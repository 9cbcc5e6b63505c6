"""From a run to files that others run, proven to give the same answers."""
