"""What the project stands on and what knows no model: declared weights, meshes and sharding, stacked layers, buckets, checkpoints, files."""
