"""Generated scenes with known content."""
