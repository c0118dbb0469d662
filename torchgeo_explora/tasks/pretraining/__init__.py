"""Self-supervised tasks."""
