"""The parts of ``record_reference.py``: stand-ins, loading, random models, inputs, and a runner for each kind of case."""
