"""Optional terms of an objective, one idea each."""
