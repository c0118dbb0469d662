"""Published weight files and their names."""
