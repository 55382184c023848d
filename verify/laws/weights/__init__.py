"""The laws of the weights."""
