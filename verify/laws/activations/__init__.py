"""The laws of architecture and activations."""
