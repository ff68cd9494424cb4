"""What ``record_reference.py`` is made of: shims, loading, random models, inputs, and one runner for each kind of case."""
