"""Distilled sets in the file formats of other code, out and in."""
