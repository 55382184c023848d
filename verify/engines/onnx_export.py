"""Export transformers' model to ONNX: ``python -m gpt_verify.engines.onnx_export DIRECTORY
FILE``.

In a process of its own, so that torch and ONNX Runtime do not share one.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any


def export(directory: str, file: str) -> None:
    """Batch and length are left open; the cache is left out.

    Args:
        directory: in the format of the Hugging Face hub.
        file: is written.
    """
    import torch
    import transformers

    model: Any = transformers.GPT2LMHeadModel.from_pretrained(
        directory, attn_implementation="eager", use_cache=False
    )

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any) -> Any:
            return self.model(tokens, use_cache=False).logits

    length = torch.export.Dim("length", min=1, max=model.config.n_positions)
    tokens = torch.zeros((2, min(3, model.config.n_positions)), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits().eval(),
            (tokens,),
            dynamo=True,
            dynamic_shapes={"tokens": {0: torch.export.Dim("batch"), 1: length}},
            input_names=["tokens"],
            output_names=["logits"],
            verbose=False,
        )
    program.save(file)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    export(*sys.argv[1:])
