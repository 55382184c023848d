"""Public bug reports about ports of GPT-2 and of other decoders, rebuilt as small ports."""
