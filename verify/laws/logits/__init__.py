"""The law of the logits."""
