"""Experts in a running module: which are chosen, with which weights, and what they make together.

Which expert is asked for what, and in which order, is the module's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gpt_verify.ports.torch.layout import Layout
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

#: Hands over a site, and says whether it was taken.
HandOver = Callable[[str, torch.Tensor, "tuple[int, ...] | None"], bool]
Names = frozenset[str]

#: Goes before the name of a site of which only a reduction is meant.
REDUCED = "reduced "
_GATHERS = {"index", "index_select", "gather"}


class Chosen:
    """Follows the routing of one run.

    Args:
        config: the checkpoint's sizes.
        rows: B · T.
        layout: how rows lie.
        names: the sites that a value was made from.
        hand_over: takes a site with what the module has there.
    """

    def __init__(
        self,
        config: Config,
        rows: int,
        layout: Layout,
        names: Callable[[torch.Tensor], Names],
        hand_over: HandOver,
    ) -> None:
        experts = config.keys.experts
        assert experts is not None, "a model of experts"
        self._rows, self._experts, self._layout = rows, experts, layout
        self._names, self._hand_over = names, hand_over
        self._sites = sites(config)
        self._routers = {s.inputs[0]: s for s in self._sites.values() if s.operation == "routing"}
        self._indices: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        #: Layer, what was added to the stream, and the sum where it has been made.
        self._sum: tuple[int, torch.Tensor, torch.Tensor | None] | None = None

    def after(self, name: str, outputs: Sequence[torch.Tensor], found: Names) -> None:
        """An operation has made these out of that: keep the chosen, and the last weights that were
        made of nothing but what the router says."""
        if self._sum is not None and self._sum[2] is None:
            self._sum = (*self._sum[:2], outputs[0])
        if name == "topk" and len(outputs) > 1 and self._router(found):
            self._indices = outputs[1] if self._each(outputs[1]) else None
        first = outputs[0]
        if self._router(found) and first.is_floating_point() and self._each(first):
            self._weights = first

    def before(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """An operation is about to read these."""
        self._look_at_state(tensors)
        if name in ("add", "add_") and len(tensors) == 2:
            self._look_at_sum(*tensors)
            self._look_at_sum(*tensors[::-1])
        if self._weights is None or self._indices is None:
            return
        here = self._weights.untyped_storage().data_ptr()
        for tensor in tensors:
            if tensor.untyped_storage().data_ptr() == here:
                first = tensor is tensors[0] and name in _GATHERS
                if first or any(self._read_by_experts(self._names(t)) for t in tensors):
                    self._show(self._weights, self._indices)
                    self._weights = self._indices = None
                    return

    def _router(self, found: Names) -> str | None:
        """The router of which alone something was made."""
        made = {part.removeprefix(REDUCED) for part in found}
        return next(iter(made)) if len(made) == 1 and made <= set(self._routers) else None

    def _each(self, x: torch.Tensor) -> bool:
        """One number for each that is chosen."""
        chosen = self._experts.chosen
        return bool(x.shape[-1:] == (chosen,) and x.numel() == self._rows * chosen)

    def _read_by_experts(self, found: Names) -> bool:
        return any(self._sites[part].kind == "ln_2" for part in found if part in self._sites)

    def _show(self, weights: torch.Tensor, indices: torch.Tensor) -> None:
        router = self._router(self._names(weights))
        if router is None or self._experts.chosen == self._experts.count:
            return
        each = weights.reshape(self._rows, -1)
        dense = each.new_zeros(self._rows, self._experts.count)
        dense.scatter_(1, indices.reshape(self._rows, -1), each)
        self._layout.note([weights], dense)
        self._hand_over(self._routers[router].name, dense, None)

    def _look_at_sum(self, stream: torch.Tensor, branch: torch.Tensor) -> None:
        """What the experts have made is about to be added to the stream."""
        if len(self._names(stream)) != 1 or branch.numel() != stream.numel():
            return
        site = self._sites.get(next(iter(self._names(stream))))
        if site is None or site.kind != "resid_mid":
            return
        read = {f"h.{site.layer}.{kind}" for kind in ("ln_2", "mlp.router", "mlp.routing")}
        made = {part.removeprefix(REDUCED) for part in self._names(branch)}
        if site.layer is not None and made <= read and f"h.{site.layer}.ln_2" in made:
            self._sum = (site.layer, branch.clone(), None)

    def _look_at_state(self, tensors: Sequence[torch.Tensor]) -> None:
        """What reads the sum says whether it is whole: the experts may be added one by one."""
        if self._sum is None or (total := self._sum[2]) is None:
            return
        here = total.untyped_storage().data_ptr()
        others = [t for t in tensors if t.untyped_storage().data_ptr() != here]
        if len(others) == len(tensors):
            return
        layer, branch, _ = self._sum
        self._sum = None
        more = {part.removeprefix(REDUCED) for t in others for part in self._names(t)}
        if not more & {f"h.{layer}.ln_2", f"h.{layer}.mlp.router", f"h.{layer}.mlp.routing"}:
            self._hand_over(f"h.{layer}.mlp.out", branch, None)
            self._hand_over(f"h.{layer}.resid_post", total, None)
