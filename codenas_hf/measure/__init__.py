"""One model, measured."""
