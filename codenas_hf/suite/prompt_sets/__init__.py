"""Prompt sets as data, and the script that makes them. A set is never changed: a new one gets the next version."""
