"""Windows of scenes that are larger than memory."""
