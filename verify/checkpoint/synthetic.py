"""Checkpoints of any size whose weights are random, but in which nothing is degenerate.

A freshly initialised GPT-2 verifies little: its gains are 1, its biases 0, its attention is
uniform and its GELU nearly linear, so that many wrong ports compute it correctly. Here the scale of
each tensor is chosen so that, whatever the size:

- layer-norm gains are 1 ± 0.3, and no bias is zero;
- attention scores have a standard deviation of about 2, so that heads attend to few positions;
- the input of GELU has a standard deviation of about 1, where it is curved;
- up to three channels of the residual stream are far larger than the others and stay so in every
  layer, as in the released models, which is what makes a layer norm hard;
- the residual stream grows two- to threefold over the depth, if it is not normed where it is made,
  as in GPT: there what is added to it is somewhat smaller than itself;
- logits have a standard deviation of about 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, released, write_family
from gpt_verify.checkpoint.synthetic_family import FamilyTensors
from gpt_verify.checkpoint.write import write_huggingface, write_openai
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.reference import GPT1, RELEASED, Config, ConfigError, TensorSpec, tensor_table
from gpt_verify.text import nearest

Format = Literal["openai", "huggingface", "both"]
#: Of a family's small model: V,P,D,H,L.
FAMILY_SIZE = "307,40,48,4,4"

#: Standard deviations that are aimed at.
LOGITS, SCORES, MLP_PRE = 3.0, 2.5, 1.0
GAIN, BIAS = 0.3, 0.3
#: Squares of the large channels, as a multiple of the squares of all the others.
LARGE = 2.0
#: Weights that read a large channel are smaller by this, as training makes them.
READ_LARGE = 0.3
#: By how much the blocks together multiply the variance of the residual stream, less one.
GROWTH = 5.0
#: Where the stream is normed after each sum: what is added to it, in units of itself.
ADDED = 0.7
#: Root mean square of an attention mix, relative to the values that it mixes, for a pattern of
#: this sharpness; and of GELU over a standard normal input (0.65).
MIX_RMS, GELU_RMS = 0.6, 0.65


class SyntheticTensors(Mapping[str, NDArray[np.float32]]):
    """Lazy: each tensor is made when it is looked up, from the seed and its own name alone."""

    def __init__(self, config: Config, seed: int, scale: float) -> None:
        self._config, self._seed, self._scale = config, seed, scale
        self._table = tensor_table(config)
        width = config.n_embd
        count = min(3, max(1, width // 64))
        self._large = self._random("large channels").choice(width, count, replace=False)
        self._sign = np.where(self._random("signs").random(count) < 0.5, -1.0, 1.0)
        #: How much of a layer norm's output (mean square 1) weights of unit variance read.
        self._read = (1 + LARGE * READ_LARGE**2) / (1 + LARGE) * (1 + GAIN**2)
        self._wte = LOGITS / math.sqrt(width * self._read)
        #: Standard deviation of an ordinary channel where the residual stream begins.
        self._stream = self._wte * math.sqrt(1.25)
        self._factor = math.sqrt(width * LARGE / count)
        #: What one half of a block adds to an ordinary channel, and to a large one in units of it.
        halves = 2 * config.n_layer
        if config.norm_first:
            self._added = math.sqrt(GROWTH / halves) * self._stream
            # The last is √(1 + GROWTH) times the first, so that they grow with the others.
            self._grows = self._stream * (math.sqrt(1 + GROWTH) - 1) / halves
        else:
            normed = 1 / math.sqrt(1 + LARGE)
            self._added = ADDED * normed
            self._grows = normed * (math.sqrt(1 + ADDED**2) - 1)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        spec = self._table[name]
        random = self._random(name)
        z = random.standard_normal(spec.shape, np.float32)
        if spec.role == "gain":
            gain: NDArray[np.float32] = np.clip(1 + np.float32(GAIN) * z, 0.2, 1.8)
            return gain
        z *= np.float32(self._deviation(spec) * self._scale)
        self._shape_large_channels(spec, z, random)
        return z

    def own(self, name: str) -> NDArray[np.float32]:
        """Each look-up makes another one."""
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def _random(self, name: str) -> np.random.Generator:
        key = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:16]
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))

    def _deviation(self, spec: TensorSpec) -> float:
        """Standard deviation of a tensor other than a gain."""
        width, name, added = self._config.n_embd, spec.name, self._added
        if name in ("wte", "lm_head"):
            return self._wte
        if name == "wpe":
            return self._wte / 2
        if spec.role == "bias":
            if name.endswith("/c_proj/b"):
                return BIAS * added
            return BIAS if "/c_" in name else BIAS / 3
        if name.endswith("attn/c_attn/w"):
            # The first block of a model that norms afterwards reads the embeddings themselves.
            bare = not self._config.norm_first and name.startswith("h0/")
            size = self._stream * math.sqrt(1 + LARGE) if bare else 1.0
            return math.sqrt(SCORES / (width * self._read)) / size
        if name.endswith("attn/c_proj/w"):
            return added / (MIX_RMS * math.sqrt(SCORES * width))
        if name.endswith("mlp/c_fc/w"):
            return MLP_PRE * math.sqrt((1 - BIAS**2) / (width * self._read))
        return added / (GELU_RMS * math.sqrt(4 * width))

    def _shape_large_channels(
        self, spec: TensorSpec, value: NDArray[np.float32], random: np.random.Generator
    ) -> None:
        """Positions and the biases of both c_proj write the large channels; all else reads them."""
        sign = self._sign * (self._factor * self._scale)
        size = sign * self._stream
        if spec.name == "wpe":
            wobble = 1 + 0.2 * random.standard_normal((len(value), len(size)))
            value[:, self._large] = (size * wobble).astype(np.float32)
        elif spec.name in ("wte", "lm_head"):
            value[:, self._large] *= np.float32(READ_LARGE)
        elif spec.name.endswith("/c_proj/b"):
            value[self._large] += (sign * self._grows).astype(np.float32)
        elif spec.name.endswith(("/c_attn/w", "/c_fc/w")):
            value[self._large] *= np.float32(READ_LARGE)


def synthetic_tensors(
    config: Config, seed: int, *, scale: float = 1.0
) -> Mapping[str, NDArray[np.float32]]:
    """Seeded weights of a model: name → float32 array with the shapes of the tensor table.

    Any tensor can be made alone, in any order, and is the same. NumPy keeps its random streams
    from version to version as a rule, but does not promise it (NEP 19).

    Args:
        config: sizes.
        seed: any integer.
        scale: multiplies embeddings, matrices and biases (not gains); 1 is the regime described
            above, and other values leave it.
    """
    if config.own is not None:
        return FamilyTensors(config, seed, scale)
    return SyntheticTensors(config, seed, scale)


def resolve_size(text: str) -> Config:
    """``124M``, ``355M``, ``774M``, ``1558M``, or five numbers ``V,P,D,H,L``.

    The five are vocabulary, positions, width, heads and layers: the order of ``Config``. They are
    those of a GPT-2, or of another architecture whose name stands before them and a colon:
    ``openai-gpt:V,P,D,H,L``; ``openai-gpt`` alone is of the released size.

    Raises:
        UsageError: neither, or impossible sizes.
    """
    if text.upper() in RELEASED:
        return RELEASED[text.upper()]
    if text == GPT1.architecture:
        return GPT1
    name, colon, numbers = text.rpartition(":")
    try:
        sizes = [int(part) for part in numbers.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 5:
        raise UsageError(
            f"size {text!r} is none of {', '.join([*RELEASED, GPT1.architecture])}, nor five "
            "numbers n_vocab,n_ctx,n_embd,n_head,n_layer"
            f"{nearest(text, [*RELEASED, GPT1.architecture])}"
        )
    v, p, d, h, n = sizes
    try:
        return Config(v, p, d, h, n, architecture=name if colon else "gpt2")
    except ConfigError as error:
        raise UsageError(f"size {text!r}: {error}") from None


def synthesize(
    out_dir: str | Path, config: Config, seed: int, *, format: Format = "openai"
) -> list[Path]:
    """Write a synthetic checkpoint, and return the directories that hold one.

    Args:
        out_dir: the checkpoint's directory; with ``both`` it gets ``openai/`` and ``huggingface/``.
        config: sizes.
        seed: see `synthetic_tensors`.
        format: OpenAI's is written by TensorFlow's Saver, Hugging Face's without any framework.

    Raises:
        CheckpointError: it cannot be written.
        MissingDependency: OpenAI's format, and TensorFlow is not installed.
    """
    out, tensors = Path(out_dir), synthetic_tensors(config, seed)
    if format == "openai":
        write_openai(out, config, tensors)
        return [out]
    if format == "huggingface":
        _write_huggingface(out, config, tensors)
        return [out]
    write_openai(out / "openai", config, tensors)
    convert(out / "openai", out / "huggingface")
    return [out / "openai", out / "huggingface"]


def synthesize_family(out_dir: str | Path, name: str, size: str | None, seed: int) -> str:
    """Write a model of a family: a small one in which whatever the family has matters, or one of
    a size that was released.

    Args:
        out_dir: the checkpoint's directory.
        name: of the family.
        size: ``V,P,D,H,L``, as in ``resolve_size``, or one that was released: ``0.6B`` of
            ``qwen3``, ``3.2-1B`` of ``llama``; a small one where None.
        seed: see `synthetic_tensors`.

    Returns:
        The size.

    Raises:
        CheckpointError: it cannot be written.
        UsageError: there is no such family, or it has no model of this size.
    """
    if name not in FAMILIES:
        raise UsageError(f"--family: {name!r} is none of {', '.join(FAMILIES)}")
    size = size or FAMILY_SIZE
    if "," in size:
        sizes = resolve_size(size).as_dict()
        v, p, d, h, n = (sizes[key] for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"))
        stated = example(name, (v, p, d, h, n))
    else:
        stated = released(name, size)
    try:
        write_family(Path(out_dir), stated, lambda config: synthetic_tensors(config, seed))
    except OSError as error:
        raise CheckpointError(f"cannot write {out_dir}: {error}") from error
    return size


def convert(openai_dir: str | Path, huggingface_dir: str | Path) -> None:
    """Write what an OpenAI directory holds as a Hugging Face one, tensor by tensor, bit for bit.

    Raises:
        CheckpointError: the one cannot be read or the other not written.
    """
    source = open_checkpoint(openai_dir)
    _write_huggingface(
        Path(huggingface_dir), source.config, source.tensors, source.encoder, source.merges
    )


def _write_huggingface(
    directory: Path,
    config: Config,
    tensors: Mapping[str, NDArray[np.float32]],
    encoder: Path | None = None,
    merges: Path | None = None,
) -> None:
    try:
        write_huggingface(directory, config, tensors, encoder, merges)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
