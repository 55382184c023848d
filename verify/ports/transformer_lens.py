"""TransformerLens: its bridge to transformers' model, as it is and with processed weights.

Since version 4 TransformerLens wraps the model of transformers (``TransformerBridge``) instead of
holding one of its own. What it then does to the weights on request (``enable_compatibility_mode``)
changes every intermediate tensor and, by a constant at each position, the logits.
"""

from __future__ import annotations

from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import files
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.errors import MissingDependency, PortError, described, install
from gpt_verify.port import LOSS, PADDED, PADDED_AT, STEP, Dtype, Floats, Port, Tokens
from gpt_verify.ports.quiet import quiet
from gpt_verify.process.scratch import scratch
from gpt_verify.reference.weights import tensor_table


def transformer_lens(
    checkpoint: Checkpoint, dtype: Dtype | None = None, device: str = "cpu"
) -> Port:
    """The bridge with the weights as they are: every site, as of any torch module.

    Raises:
        MissingDependency: TransformerLens is not installed, or is older than version 4.
        PortError: it cannot load the checkpoint.
    """
    from gpt_verify.ports.torch.module import TorchModule

    port = TorchModule(
        _bridge(checkpoint, dtype),
        checkpoint,
        "transformer-lens",
        dtype,
        device,
        call=lambda module, ids: module(ids, return_type="logits"),
    )
    # Its forward takes labels, and a cache, under these names, and means something else by them.
    port.withdraw(LOSS, STEP, PADDED, PADDED_AT)
    port.waivers = {
        "weights.count": "the bridge keeps query, key and value fused, as transformers does, and "
        "split as well"
    }
    return port


def processed(checkpoint: Checkpoint, dtype: Dtype | None = None, device: str = "cpu") -> Port:
    """The bridge as it is used for analyses: layer norms folded, weights centred.

    Raises:
        MissingDependency, PortError: as above.
    """
    bridge = _bridge(checkpoint, dtype)
    bridge.enable_compatibility_mode(disable_warnings=True)
    return _Processed(bridge.eval().to(device), checkpoint, dtype or "float32", device)


class _Processed(Port):
    """Logits alone: no weight and no site is what it was before the processing."""

    def __init__(self, bridge: Any, checkpoint: Checkpoint, dtype: Dtype, device: str) -> None:
        self.name, self.dtype, self.device = "transformer-lens-processed", dtype, device
        self._bridge = bridge
        found = ", ".join(recognised(bridge, checkpoint))
        self.remarks = (f"processed: {found or 'nothing that could be recognised'}",)

    def logits(self, tokens: Tokens) -> Floats:
        import torch

        from gpt_verify.ports.torch.trace import to_numpy

        with torch.no_grad():
            ids = torch.as_tensor(tokens, device=self.device)
            return to_numpy(self._bridge(ids, return_type="logits"))

    def close(self) -> None:
        self._bridge = None


def recognised(bridge: Any, checkpoint: Checkpoint) -> list[str]:
    """What was done to the weights, as their values show it; each where the checkpoint's own
    values do not show it already.

    A mean counts as nothing where it is no larger than rounding leaves it: u √n RMS.
    """
    import numpy as np

    def centred(matrix: Any, axis: int) -> bool:
        x = np.asarray(matrix, np.float64)
        n = x.shape[axis]
        scale = np.sqrt(np.mean(x**2))
        return bool(np.abs(x.mean(axis=axis)).max() <= 2.0**-24 * np.sqrt(n) * max(scale, 1e-30))

    def numpy(tensor: Any) -> Any:
        return tensor.detach().double().cpu().numpy()

    block, tensors = bridge.blocks[0], checkpoint.tensors
    gain = numpy(block.ln1.weight) if hasattr(block.ln1, "weight") else np.ones(1)
    ways = {
        "layer norms folded into the next matrix": (
            bool((gain == 1).all()),
            bool((np.asarray(tensors["h0/ln_1/g"]) == 1).all()),
        ),
        "what is written into the residual stream centred": (
            centred(numpy(bridge.W_E), 1),
            centred(tensors["wte"], 1),
        ),
        "unembedding centred": (centred(numpy(bridge.W_U), 1), centred(tensors["wte"], 0)),
        "value biases folded": (
            not numpy(bridge.b_V).any(),
            not np.asarray(tensors["h0/attn/c_attn/b"])[-checkpoint.config.n_embd :].any(),
        ),
    }
    return [name for name, (now, before) in ways.items() if now and not before]


def _bridge(checkpoint: Checkpoint, dtype: Dtype | None) -> Any:
    """Loaded as its users load it: from a directory in the hub's format."""
    try:
        import torch
        import transformers
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as e:
        raise MissingDependency(
            f"transformer-lens 4 or newer is not installed: {install('transformer-lens')}"
        ) from e
    if not checkpoint.has_vocabulary:
        raise PortError("transformer-lens: it loads no model without a vocabulary")
    tensors = {name: checkpoint.tensors[name] for name in tensor_table(checkpoint.config)}
    with scratch() as directory, quiet(transformers):
        with files(checkpoint) as both:
            write_huggingface(directory, checkpoint.config, tensors, *(both or ()))
        format_ = getattr(torch, dtype or "float32")
        try:
            return TransformerBridge.boot_transformers(directory, device="cpu", dtype=format_)
        except Exception as e:  # whatever a library of this size may raise
            raise PortError(
                f"transformer-lens: it cannot load the checkpoint: {described(e)}"
            ) from e
