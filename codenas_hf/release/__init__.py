"""A finished model leaves the house."""
