"""`codenas <verb>`."""
