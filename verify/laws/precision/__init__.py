"""The law of precision."""
