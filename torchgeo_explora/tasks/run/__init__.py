"""Plan, images, checkpoints and resuming of a run."""
