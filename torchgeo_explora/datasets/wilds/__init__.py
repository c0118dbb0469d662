"""Data sets of WILDS."""
