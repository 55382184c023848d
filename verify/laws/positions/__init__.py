"""The laws of the position table."""
