"""Host side: media, text and prompts to the padded arrays that the model runs on. numpy only, no jax."""
