"""The report of a run, and the comparison of several, from what they saved; without torch."""
