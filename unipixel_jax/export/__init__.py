"""Inference as programs that run without this package: pure functions of arrays with fixed shapes, as StableHLO or ONNX."""
