"""Data sets listed in a table."""
