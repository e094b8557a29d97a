"""What is searched: genomes, their genes, the space of them, and their equals in transformers."""
