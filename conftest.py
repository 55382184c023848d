"""Loads the plugin in a source checkout; an installed package registers it by entry point."""
