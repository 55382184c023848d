"""The operations, a file each: how it is computed, how it is rounded, how it is differentiated."""
