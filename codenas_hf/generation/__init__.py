"""From a prompt to a completion."""
