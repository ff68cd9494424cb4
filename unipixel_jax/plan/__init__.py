"""What a program would cost on chips that are not here: memory, arithmetic, traffic."""
