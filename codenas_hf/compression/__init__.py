"""A model in fewer bytes, and the files that other programs read."""
