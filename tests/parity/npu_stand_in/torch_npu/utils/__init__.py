"""How tensors of the stand-in are saved."""
