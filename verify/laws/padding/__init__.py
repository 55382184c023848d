"""The law of padding."""
