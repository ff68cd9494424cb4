"""The small model that ships with the package: the curriculum that trains its parts, the run that trains them together, and how good it is."""
