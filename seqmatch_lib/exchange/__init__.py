"""Distilled sets in the file formats of other codes, out and in."""
