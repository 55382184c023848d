"""The law of the cache."""
