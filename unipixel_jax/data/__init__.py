"""Training data: sources on disk, what is drawn from them, and the batches that training reads. numpy only, no jax."""
