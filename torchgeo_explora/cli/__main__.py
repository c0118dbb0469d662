"""`python -m torchgeo_explora.cli`, for launchers that take a module."""

from torchgeo_explora.cli import main

main()
