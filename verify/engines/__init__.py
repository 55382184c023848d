"""Engines that run in processes of their own, one module for each process.

Modules whose names end in ``_worker`` or ``_export`` are run, never imported.
"""
