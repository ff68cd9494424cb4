"""Tiny data sets in the layouts that the sources read, for tests and for trying things out; one writer for each source."""
