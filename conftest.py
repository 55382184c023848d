"""Loads the plugin in a source checkout; an installed package registers it by entry point."""

import pytest

import gpt_verify.plugin


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    # By hand and not by ``pytest_plugins``, which refuses a module that an entry point has already
    # registered under another name. Registering calls the plugin's own pytest_addoption.
    if not pluginmanager.is_registered(gpt_verify.plugin):
        pluginmanager.register(gpt_verify.plugin, "gpt_verify")
