"""Benchmarks: predictions in the reference's layouts, scores, and their report."""
