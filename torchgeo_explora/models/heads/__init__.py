"""Heads and decoders that take the tokens of a backbone."""
