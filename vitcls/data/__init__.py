"""From rows of a dataset to batches on the device."""
