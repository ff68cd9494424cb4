"""What the parts of the small model are taught one by one before they are trained together."""
