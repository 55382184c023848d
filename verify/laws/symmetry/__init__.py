"""The laws of symmetry."""
