"""The law of the lens."""
