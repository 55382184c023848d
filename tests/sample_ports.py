"""Port factories for the tests of the command and of the plugin, quick because NumPy only.

They are given to the command as ``sample_ports.py:name``, as a user gives a file of his own. A
correct port may use the reference here: what is tested is what the tool does with it.
"""

import os
import sys

import numpy as np

from gpt_verify import reference


def good(checkpoint):
    def logits(tokens):
        rows = [reference.logits(checkpoint.tensors, checkpoint.config, row) for row in tokens]
        return np.stack(rows).astype(np.float32)

    return logits


def twice_too_large(checkpoint):
    correct = good(checkpoint)
    return lambda tokens: 2 * correct(tokens)


def chatty(checkpoint):
    print("the port speaks")
    sys.stdout.flush()
    os.write(1, b"the port speaks from C\n")
    return good(checkpoint)


def nan(checkpoint):
    return lambda tokens: np.full((*tokens.shape, checkpoint.config.n_vocab), np.nan, np.float32)


def wrong_shape(checkpoint):
    return lambda tokens: np.zeros((*tokens.shape, 3), np.float32)


def wrong_dtype(checkpoint):
    return lambda tokens: np.zeros((*tokens.shape, checkpoint.config.n_vocab), np.int64)


def raises(checkpoint):
    raise ValueError("no weights today\nand a second line")


def raises_in_use(checkpoint):
    def logits(tokens):
        raise RuntimeError("out of order")

    return logits


def exits(checkpoint):
    sys.exit(0)


def returns_a_number(checkpoint):
    return 3


def interrupted(checkpoint):
    raise KeyboardInterrupt
