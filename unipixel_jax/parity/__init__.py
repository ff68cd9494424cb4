"""Replaying recordings of the torch reference and comparing."""
