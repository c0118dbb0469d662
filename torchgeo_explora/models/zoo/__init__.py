"""Architectures and weights by name."""
