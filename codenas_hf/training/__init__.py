"""One plain Accelerate loop for every rung and for the winner."""
