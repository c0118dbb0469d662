"""Embeddings of images and scenes: as files, searched, and as maps."""
