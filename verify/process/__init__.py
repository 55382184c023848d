"""Processes: children and what they are asked, what a port did to ours, and how it ends."""
