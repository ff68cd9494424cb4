"""The host's side: makes the padded arrays that the model runs on from media, text and prompts. numpy only, no jax."""
