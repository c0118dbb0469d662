"""Functional Map of the World: RGB, Sentinel-2 and series."""
