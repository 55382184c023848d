"""The laws of determinism."""
