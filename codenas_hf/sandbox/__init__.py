"""Generated code runs here and nowhere else."""
