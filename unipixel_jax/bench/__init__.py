"""How fast the model is here: real sizes, random weights."""
