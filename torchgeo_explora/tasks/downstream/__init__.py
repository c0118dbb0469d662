"""Tasks on labelled images."""
