"""The reports that were found beside those that the project began with, and a pair of each.

Each cause was read in the thread that is linked; the code is ours, and alters one thing in the
GPT-2 of ``tests/outside/``.
"""

import math

import torch
from outside.gpt2 import GPT2, MLP, Attention, Block, filled
from torch import nn
from torch.nn import functional as F

from reports.record import Log

LOG = Log()
CACHE = r"cache(\..*)?"
MASKS = r"(padding|positions|masks?|cache|loss)(\..*)?"
HISTORY = r"(history|calls|determinism|lengths|batch|positions|logits|cache)(\..*)?"


# Positions


@LOG.report(
    "positions-from-heads",
    "dmlc/gluon-nlp/issues/1015",
    cause="the number of heads is taken for the length of the cache, so that every step has the "
    "position H",
    law=CACHE,
    words=r"position",
)
class PositionsFromHeads(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, mask, self.config.n_head if start else 0)


@LOG.report(
    "no-position-for-one-token",
    "ml-explore/mlx-lm/pull/93",
    cause="a call with a single token adds no position at all",
    law=CACHE + r"|logits|activations\..*|lengths",
    words=r"position|single|one token",
)
class NoPositionForOne(GPT2):
    def embed(self, ids, positions):
        return super().embed(ids, positions) if ids.shape[1] > 1 else self.wte(ids)


@LOG.report(
    "cached-positions-from-zero",
    "ml-explore/mlx-lm/pull/93",
    cause="with a cache, the positions of new tokens begin at 0",
    law=CACHE,
    words=r"position",
)
class CachedPositionsFromZero(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, None, 0)


class WithoutPositionIds(GPT2):
    """Whose caller cannot give positions: it finds them by itself."""

    def forward(
        self, input_ids, attention_mask=None, past_key_values=None, use_cache=False, labels=None
    ):
        return super().forward(input_ids, attention_mask, None, past_key_values, use_cache, labels)


@LOG.report(
    "one-offset-for-all-rows",
    "ml-explore/mlx-lm/issues/526",
    "huggingface/transformers/issues/21080",
    cause="one offset of positions serves all rows, padded on the left or not",
    law=MASKS,
    words=r"position",
    right=WithoutPositionIds,
)
class OneOffset(WithoutPositionIds):
    def positions(self, ids, mask, start):
        return super().positions(ids, None, start)


@LOG.report(
    "offset-counts-prompt-twice",
    "skyzh/tiny-llm/pull/46",
    cause="after the first step, the offset grows by the length of the prompt once more",
    law=CACHE,
    words=r"position",
)
class OffsetTwice(GPT2):
    def positions(self, ids, mask, start):
        if start and mask is None and start > 1:
            start = min(start + start - 1, self.config.n_ctx - ids.shape[1])
        return super().positions(ids, mask, start)


# Masks


@LOG.report(
    "mask-without-triangle",
    "huggingface/candle/issues/3567",
    cause="where a mask of padding is given, the causal one is left out",
    law=r"(padding|masks?|causality|positions)(\..*)?",
    words=r"causal|future|mask|triangle|padding",
)
class MaskWithoutTriangle(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        if mask is None:
            return found
        return mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1) | found


@LOG.report(
    "mask-of-new-tokens-only",
    "huggingface/transformers/issues/4130",
    cause="a mask beside a cache is read as that of the new tokens; padding in the cache is seen",
    law=MASKS,
    words=r"padding|mask|cached|sees|seen",
)
class MaskOfNewTokens(GPT2):
    def visible(self, mask):
        return self._new(mask)[:, None, :]

    def _new(self, mask):
        old = torch.ones_like(mask[:, : mask.shape[1] - self._length])
        return torch.cat([old, mask[:, mask.shape[1] - self._length :]], 1).bool()

    def allowed(self, ids, mask, start):
        self._length = ids.shape[1]
        return super().allowed(ids, mask, start)


@LOG.report(
    "chunk-without-mask",
    "mlx-node/mlx-node/pull/24",
    "OpenNMT/OpenNMT-py/pull/1971",
    cause="the causal mask is applied only where targets and sources are equally many, so that "
    "several tokens beside a cache see each other's future",
    law=CACHE,
    words=r"future|causal|mask|several|chunk|more than one|sees",
)
class ChunkWithoutMask(Attention):
    def pattern(self, scores, allowed):
        if scores.shape[-1] != scores.shape[-2] and allowed.shape[0] == 1:
            return scores.softmax(-1)
        return super().pattern(scores, allowed)


@LOG.report(
    "mask-at-upper-left",
    "pytorch/pytorch/issues/108108",
    "open-lm-engine/lm-engine/pull/498",
    cause="scaled_dot_product_attention(is_causal=True) puts the mask at the upper left where a "
    "cache makes sources more than targets",
    law=CACHE,
    words=r"upper|left|align|mask|first|sees|pattern|corner|causal",
)
class MaskAtUpperLeft(Attention):
    def pattern(self, scores, allowed):
        if scores.shape[-1] != scores.shape[-2] and allowed.shape[0] == 1:
            allowed = torch.ones_like(allowed).tril()
        return super().pattern(scores, allowed)


@LOG.report(
    "mask-made-with-the-cache",
    "meta-pytorch/torchtune/issues/959",
    cause="the causal mask exists only once a cache was set up; without one every token sees all",
    law=r"causality\..*|logits|activations\..*",
    words=r"mask|causal|future",
)
class MaskMadeWithCache(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        self._cached = self._wants_cache
        return super().run(ids, mask, positions, past)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None,
                use_cache=False, labels=None):  # fmt: skip
        self._wants_cache = use_cache
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, labels
        )

    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        return found if self._cached or mask is not None else torch.ones_like(found)


# Attention and blocks


@LOG.report(
    "softmax-over-the-wrong-axis",
    "nerdai/llms-from-scratch-rs/pull/30",
    cause="the weights of attention are a softmax over the targets",
    site=r"h\.0\.attn\.(pattern|mix)",
    words=r"target|quer|axis|column|dim|sum",
)
class SoftmaxWrongAxis(Attention):
    def pattern(self, scores, allowed):
        return scores.masked_fill(~allowed, -math.inf).softmax(2).nan_to_num()


@LOG.report(
    "qkv-by-head",
    "awslabs/slapo/pull/46",
    "lablup/mlxcel/pull/928",
    cause="the fused matrix is cut head by head (q₀ k₀ v₀ q₁ …), where GPT-2 has all queries first",
    site=r"h\.0\.attn\.(scores|qkv|pattern)",
    words=r"head|interleav|group|order|neox|megatron|permut|turns",
)
class QkvByHead(Attention):
    def split(self, qkv):
        return list(qkv.unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4))


@LOG.report(
    "residual-of-the-normed",
    "Howuhh/faster-trajectory-transformer/issues/3",
    "lbcb-sci/RiNALMo/issues/9",
    cause="the residual path takes the normalised state: norm(x) + attn(norm(x))",
    site=r"h\.0\.resid_mid",
    words=r"norm|ln_1|residual|sum",
)
class ResidualOfNormed(Block):
    def forward(self, x, allowed, past=None):
        normed = self.ln_1(x)
        attended, kept = self.attn(normed, allowed, past)
        x = normed + attended
        return x + self.mlp(self.ln_2(x)), kept


@LOG.report(
    "gelu-exact",
    "nntile/nntile/pull/370",
    "OpenNMT/CTranslate2/issues/1658",
    cause="the MLP has the exact GELU in the place of the tanh approximation",
    site=r"h\.0\.mlp\.act",
    words=r"erf|exact",
)
class GeluExact(MLP):
    def act(self, x):
        return F.gelu(x)


@LOG.report(
    "mlp-without-biases",
    "nntile/nntile/pull/370",
    cause="the two matrices of the MLP have no biases",
    law=r"weights\..*|activations\..*",
    words=r"bias",
)
class MlpWithoutBiases(MLP):
    def forward(self, x):
        return F.linear(self.act(F.linear(x, self.c_fc.weight)), self.c_proj.weight)


# The cache


@LOG.report(
    "decoding-swaps-keys-and-values",
    "tenstorrent/tt-mlir/issues/8958",
    cause="in decoding, not in the prefill, keys and values of the new token are exchanged",
    law=CACHE,
    words=r"k(eys)?\b.*v(alues)?\b|exchang|swap|q, v, k",
)
class DecodingSwaps(Attention):
    def forward(self, x, allowed, past=None):
        self._decoding = past is not None
        return super().forward(x, allowed, past)

    def split(self, qkv):
        q, k, v = super().split(qkv)
        return [q, v, k] if self._decoding else [q, k, v]


class Buffered(Attention):
    """Its cache is a buffer whose size is a multiple of four; what is not filled is zero."""

    hidden = True

    def forward(self, x, allowed, past=None):
        q, k, v = self.split(self.c_attn(x))
        if past is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(past[:2], (k, v), strict=True))
        old = 0 if past is None else past[0].shape[2]
        room = -old % 4 if past is not None else 0
        buffer = [F.pad(part, (0, 0, 0, room)) for part in (k, v)]
        seen = F.pad(allowed.expand(-1, 1, -1, -1), (0, room), value=not self.hidden)
        pattern = self.pattern(self.scores(q, buffer[0]), seen)
        return self.c_proj(self.merge(pattern @ buffer[1])), (k, v)


@LOG.report(
    "cache-with-its-empty-end",
    "ml-explore/mlx-examples/issues/977",
    "huggingface/transformers/pull/45940",
    cause="the whole buffer of the cache is attended to, its empty end (zeros) included",
    law=CACHE,
    words=r"zero|slot|empty|unfilled|unwritten|beyond|extra|buffer",
    right=Buffered,
)
class CacheWithEmptyEnd(Buffered):
    hidden = False


@LOG.report(
    "first-token-never-cached",
    "TrenTorch/TrenTorch/pull/192",
    cause="the first token's keys and values are never written into the cache and stay zero",
    law=CACHE,
    words=r"zero|first|slot|empty|token 0|never written|lost",
)
class FirstNeverCached(Attention):
    def kept(self, k, v):
        return tuple(torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, 1:]], 2) for x in (k, v))


@LOG.report(
    "cache-in-half",
    "ggml-org/llama.cpp/issues/7859",
    cause="keys and values are cached in float16; the first run, without a cache, had float32",
    law=CACHE,
    words=r"float16|half|precision|rounded",
)
class CacheInHalf(Attention):
    def kept(self, k, v):
        return k.half().to(k.dtype), v.half().to(v.dtype)


@LOG.report(
    "one-token-continues-the-last-call",
    "casper-hansen/AutoAWQ/issues/170",
    cause="a module keeps its cache and its position; a prompt of one token goes on where the last "
    "call ended",
    law=HISTORY,
    words=r"earlier|history|before|call|left over|last call|continues|cache|single|one token",
)
class OneTokenContinues(GPT2):
    _last = None

    def run(self, ids, mask=None, positions=None, past=None):
        if past is None and mask is None and ids.shape[1] == 1 and self._fits(ids):
            past = self._last
        logits, kept = super().run(ids, mask, positions, past)
        self._last = [(k.detach(), v.detach()) for k, v in kept]
        return logits, kept

    def _fits(self, ids):
        if self._last is None:
            return False
        rows, _, length, _ = self._last[0][0].shape
        same = rows == len(ids) and self._last[0][0].dtype == self.wte.weight.dtype
        return same and length < self.config.n_ctx


# The loss and the head


@LOG.report(
    "shifted-twice-across-rows",
    "huggingface/transformers/issues/47394",
    "huggingface/transformers/pull/37830",
    cause="labels are shifted and flattened, and shifted once more by the loss function: a token "
    "predicts the next but one, and the last of a row the first of the next row",
    law=r"loss\..*",
    words=r"shift|two|twice|t ?\+ ?2|row",
)
class ShiftedTwice(GPT2):
    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(flat, F.pad(wanted, (0, 1), value=-100)[1:])


@LOG.report(
    "labels-not-shifted",
    "huggingface/transformers/issues/27517",
    cause="the loss of a causal model is taken without a shift: a token predicts itself",
    law=r"loss\..*",
    words=r"shift|itself|unshifted",
)
class NotShifted(GPT2):
    def loss(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class LossOfMask(GPT2):
    """Labels of padding do not count, even where the caller left them in."""

    part = slice(1, None)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None,
                use_cache=False, labels=None):  # fmt: skip
        self._mask = attention_mask
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, labels
        )

    def loss(self, logits, labels):
        if self._mask is None:
            return super().loss(logits, labels)
        wanted = labels[:, 1:].masked_fill(self._mask[:, self.part] == 0, -100)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten())


@LOG.report(
    "loss-mask-not-shifted",
    "SkyworkAI/Skywork/issues/55",
    cause="labels are shifted and the mask is not (mask[:, :-1] for mask[:, 1:]): the first token "
    "of padding counts in the loss",
    law=r"(loss|padding|masks?)(\..*)?",
    words=r"mask|padding|shift",
    right=LossOfMask,
)
class LossMaskNotShifted(LossOfMask):
    part = slice(None, -1)


@LOG.report(
    "head-not-tied",
    "huggingface/transformers/pull/43207",
    cause="the list of tied weights is empty: the head is a matrix of its own, which no file fills",
    law=r"weights\..*|tying\..*|logits|activations\..*",
    words=r"head|tied|tying|copy|initial|random",
)
def head_not_tied(checkpoint):
    model = GPT2(checkpoint.config)
    generator = torch.Generator().manual_seed(0)
    fresh = torch.empty_like(model.wte.weight).normal_(std=0.02, generator=generator)
    model.lm_head.weight = nn.Parameter(fresh)
    return filled(model, checkpoint.tensors).eval()


# Other decoders, on transformers' own model of the family


def transformers_model(checkpoint, **changed):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint.path)
    for key, value in changed.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.path, config=config, attn_implementation="eager"
    ).eval()


@LOG.report(
    "window-of-one-more",
    "huggingface/transformers/issues/39408",
    "huggingface/transformers/pull/26792",
    "zml/zml/pull/763",
    cause="a sliding window of W lets a token see W tokens before itself, one too many",
    site=r".*attn.*(scores|pattern|mix)",
    words=r"window|sees|one more",
    right=transformers_model,
    family="mistral",
)
def window_of_one_more(checkpoint):
    from transformers import AutoConfig

    window = AutoConfig.from_pretrained(checkpoint.path).sliding_window
    return transformers_model(checkpoint, sliding_window=window + 1)


@LOG.report(
    "eps-of-another-version",
    "huggingface/candle/pull/271",
    "foundation-model-stack/foundation-model-stack/pull/99",
    cause="ε of the norms is 1e-6 where the file says 1e-5, or the other way round",
    site=r"h\.0\.(ln_1|norm_1|.*norm.*|.*ln.*)",
    words=r"eps|ε",
    right=transformers_model,
    family="llama",
)
def eps_of_another_version(checkpoint):
    from transformers import AutoConfig

    eps = AutoConfig.from_pretrained(checkpoint.path).rms_norm_eps
    return transformers_model(checkpoint, rms_norm_eps=1e-6 if eps != 1e-6 else 1e-5)


@LOG.report(
    "gemma-gelu-exact",
    "NVIDIA-NeMo/Megatron-Bridge/pull/4661",
    "mlc-ai/mlc-llm/pull/2106",
    cause="the gate has the exact GELU in the place of the tanh approximation",
    site=r"h\.0\.mlp\..*",
    words=r"erf|exact",
    right=transformers_model,
    family="gemma",
)
def gemma_gelu_exact(checkpoint):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path)
    both = {key: "gelu" for key in ("hidden_act", "hidden_activation") if hasattr(config, key)}
    return transformers_model(checkpoint, **both)
