"""Search, train, measure and share ultra-light Python code language models."""

__version__ = "0.1.0"
