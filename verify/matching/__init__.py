"""Which parameter of a port is which tensor of the checkpoint, and how it lies there."""
