"""Averaging the weights of several trained classifiers into one."""
