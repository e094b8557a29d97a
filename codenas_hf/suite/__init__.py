"""A finished model, ours or any, on tasks."""
