"""The law of devices."""
