"""Vision Transformers as `embed` and `encode`."""
