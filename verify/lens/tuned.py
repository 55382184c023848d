"""The tuned lens: an affine map for each state, trained elsewhere and read from a file.

Belrose et al. 2023 (arXiv 2303.08112), section 3: before ln_f, a state x is translated to
x + A x + b, which corrects what later layers would have done to its basis. The parametrisation as
a sum is that of the ``tuned-lens`` package (``TunedLens.transform_hidden``).

The file, ``.safetensors`` or ``.npz``, holds for each state a matrix ``KEY.weight`` [D, D], stored
[out, in] as torch.nn.Linear has it, and optionally a vector ``KEY.bias`` [D]. KEY is

- a number i, as in that package's ``params.pt``: the state that goes *into* block i (0: ``embed``,
  i: ``h.{i−1}.resid_post``); or
- the name of a state, ``h.3.resid_mid``.

The last state needs no map and is read as it is; other states without one are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt_verify.errors import CheckpointError
from gpt_verify.lens.decoders import LnF
from gpt_verify.lens.states import state_sites
from gpt_verify.reference.config import Config

Floats = NDArray[np.floating]


class TunedLens:
    """A decoder that translates each state before ln_f.

    Args:
        weights: of the checkpoint.
        config: sizes.
        tensors: as the file has them.
        name: in words.

    Raises:
        CheckpointError: a name that means nothing, a shape that does not fit, a bias without a
            matrix, two maps for one state, numbers that are not finite, or no map at all.
    """

    def __init__(
        self,
        weights: Mapping[str, Floats],
        config: Config,
        tensors: Mapping[str, NDArray[Any]],
        name: str = "tuned lens",
    ) -> None:
        self.name = name
        self._sites, self._d = state_sites(config), config.n_embd
        self._ln_f = LnF(weights)
        self._maps: dict[str, tuple[Floats, Floats]] = {}
        given: dict[tuple[str, str], str] = {}
        for key in tensors:
            place = self._place(key)
            if place in given:
                raise CheckpointError(f"{name}: {given[place]} and {key} are the same")
            given[place] = key
        for site in dict.fromkeys(site for site, _part in given):
            if (site, "weight") not in given:
                raise CheckpointError(f"{name}: {given[site, 'bias']} has no matrix beside it")
            matrix = self._checked(tensors, given[site, "weight"], (self._d, self._d))
            bias: Floats = np.zeros(self._d)
            if (site, "bias") in given:
                bias = self._checked(tensors, given[site, "bias"], (self._d,))
            self._maps[site] = matrix, bias
        if not self._maps:
            raise CheckpointError(f"{name}: it holds no map")

    def decode(self, site: str, x_TD: Floats) -> Floats | None:
        """ln_f of x + A x + b."""
        if site in self._maps:
            a_oi, b_o = self._maps[site]
            return self._ln_f.decode(site, x_TD + x_TD @ a_oi.T + b_o)
        return self._ln_f.decode(site, x_TD) if site == self._sites[-1] else None

    def _place(self, key: str) -> tuple[str, str]:
        """The state and the part that a name in the file stands for."""
        before, _, part = key.rpartition(".")
        if part not in ("weight", "bias"):
            raise CheckpointError(f"{self.name}: {key} is neither a weight nor a bias")
        if before.isascii() and before.isdigit() and int(before) < len(self._sites) // 2:
            return self._sites[2 * int(before)], part
        if before not in self._sites:
            raise CheckpointError(f"{self.name}: {key} belongs to no state of this model")
        return before, part

    def _checked(
        self, tensors: Mapping[str, NDArray[Any]], key: str, shape: tuple[int, ...]
    ) -> Floats:
        value = tensors[key]
        if value.shape != shape:
            raise CheckpointError(
                f"{self.name}: {key} has shape {list(value.shape)}, not {list(shape)}"
            )
        if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            raise CheckpointError(f"{self.name}: {key} holds what is not a finite number")
        return value.astype(np.float64)


def read_tuned(path: Path, weights: Mapping[str, Floats], config: Config) -> TunedLens:
    """Read a tuned lens from a ``.safetensors`` or ``.npz`` file.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it does not fit the model.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                tensors = dict(file)
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            raise CheckpointError(f"{path}: a tuned lens is a .safetensors or an .npz file")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return TunedLens(weights, config, tensors, name=f"tuned lens {path.name}")
