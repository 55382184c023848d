"""Prove or refute that an implementation of GPT-2 is the model that OpenAI released."""

__version__ = "0.1.0"
