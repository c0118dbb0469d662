"""Data sets decoded once and kept as shards."""
