"""The laws of the loss."""
