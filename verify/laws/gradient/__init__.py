"""The law of the gradient."""
