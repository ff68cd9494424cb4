"""Training data as tensorflow-datasets keeps it, in ArrayRecord shards, written and read without TensorFlow."""
