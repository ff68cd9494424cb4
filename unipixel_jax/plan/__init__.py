"""Plans: the memory, arithmetic and traffic of a run's programs, compiled for accelerators that are not here."""
