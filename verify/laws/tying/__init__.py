"""The laws of tying."""
