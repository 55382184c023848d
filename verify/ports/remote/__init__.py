"""Ports that are not Python: a program, or a server. What they speak is in ``protocol.py``."""
