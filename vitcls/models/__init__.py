"""The classifier: a network of transformers, its adapters, its training step."""
