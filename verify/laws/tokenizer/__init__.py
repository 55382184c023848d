"""The laws of the tokenizer."""
