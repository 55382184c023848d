"""The law of the batch."""
