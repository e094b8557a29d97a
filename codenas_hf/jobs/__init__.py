"""Whole jobs that a person asks for."""
