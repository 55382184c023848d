"""Faults from outside: written by somebody who had not seen what the tool tries.

The catalogue measures itself on the faults that it lists. These are not in it, and are never to be
put into it: a rate that is published beside the catalogue's own must come from elsewhere.
"""
