"""The laws of causality."""
