"""Mistakes in attention: scale, mask, softmax, and how heads are cut and put together."""

import math

import torch
from torch.nn import functional as F

from outside.gpt2 import Attention
from outside.record import Table

FAULTS = Table()
SCORES = r"h\.\d\.attn\.(scores|pattern)"
PATTERN = r"h\.\d\.attn\.(pattern|mix)"


@FAULTS.part(
    "Scores are divided by the root of the whole width.",
    "sqrt(d_model) for sqrt(d_head)",
    site=SCORES,
    words=r"width|n_embd|d_model|scal|×|sqrt|root",
)
class ScaledByWidth(Attention):
    def scores(self, q, k):
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1] * self.heads)


@FAULTS.part(
    "Queries are scaled before a kernel that scales the scores again.",
    "T5-like code moved onto scaled_dot_product_attention without scale=1",
    site=SCORES,
    words=r"twice|again|two times|scal|×|1 ?/ ?(K|d)|squared",
)
class ScaledTwice(Attention):
    def scores(self, q, k):
        return super().scores(q / math.sqrt(q.shape[-1]), k)


@FAULTS.part(
    "Scores of layer i are divided by i + 1.",
    "scale_attn_by_inverse_layer_idx, of Mistral's GPT-2, switched on",
    site=r"h\.1\.attn\.(scores|pattern)",
    words=r"layer",
)
class ScaledByLayer(Attention):
    def scores(self, q, k):
        return super().scores(q, k) / (self.layer + 1)


@FAULTS.part(
    "Scores are capped by 2 tanh(s / 2).",
    "Gemma 2's attn_logit_softcapping",
    site=SCORES,
    words=r"cap|tanh|saturat|clip|clamp",
)
class ScoresCapped(Attention):
    def scores(self, q, k):
        return 2 * torch.tanh(super().scores(q, k) / 2)


@FAULTS.part(
    "Scores above 0.1 are cut off there.",
    "clip_qkv or a clamp for stability in half precision",
    site=SCORES,
    words=r"clamp|clip|cut|cap|limit|saturat",
)
class ScoresClamped(Attention):
    def scores(self, q, k):
        return super().scores(q, k).clamp(max=0.1)


@FAULTS.part(
    "A slope times the distance is subtracted from the scores of each head.",
    "ALiBi, as in BLOOM and MPT",
    site=SCORES,
    words=r"alibi|slope|distance|linear bias|bias",
)
class DistanceAdded(Attention):
    def scores(self, q, k):
        slopes = 2.0 ** -torch.arange(1, self.heads + 1, dtype=q.dtype)
        sources = torch.arange(k.shape[2], dtype=q.dtype)
        return super().scores(q, k) + slopes[:, None, None] * sources


@FAULTS.part(
    "Queries and keys are rotated by their position.",
    "RoPE left on in a block that other models share",
    site=SCORES + r"|h\.\d\.attn\.qkv",
    words=r"rope|rotar|rotat",
)
class Rotated(Attention):
    def turned(self, x, start):
        half = x.shape[-1] // 2
        rate = 10000.0 ** -(torch.arange(half, dtype=x.dtype) / half)
        angle = torch.arange(start, start + x.shape[2], dtype=x.dtype)[:, None] * rate
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def scores(self, q, k):
        return super().scores(self.turned(q, k.shape[2] - q.shape[2]), self.turned(k, 0))


@FAULTS.part(
    "Queries and keys are brought to length 1 before they meet.",
    "QK-norm (cosine attention), as in ViT-22B and nanoGPT speed runs",
    site=SCORES + r"|h\.\d\.attn\.qkv",
    words=r"norm|length|cosine|unit",
)
class CosineAttention(Attention):
    def scores(self, q, k):
        return super().scores(F.normalize(q, dim=-1), F.normalize(k, dim=-1))


@FAULTS.part(
    "The softmax runs over the targets in place of the sources.",
    "softmax(dim=1), or dim=-2, on transposed scores",
    site=PATTERN,
    words=r"target|quer|axis|column|dim|sum",
)
class SoftmaxOverTargets(Attention):
    def pattern(self, scores, allowed):
        return scores.masked_fill(~allowed, -math.inf).softmax(-2).nan_to_num()


@FAULTS.part(
    "The future is taken away after the softmax, and what is left is not normalised again.",
    "tril applied to the pattern instead of the scores",
    site=PATTERN,
    words=r"after|normali|sum|mask",
)
class MaskedAfterwards(Attention):
    def pattern(self, scores, allowed):
        return scores.softmax(-1) * allowed


@FAULTS.part(
    "The future is masked with −10, and some of it leaks.",
    "a mask value for half precision that is far too small",
    site=SCORES,
    law=r"causality\..*|activations\..*",
    words=r"mask|future|leak|finite|−?-?10\b",
)
class MaskOfMinusTen(Attention):
    def pattern(self, scores, allowed):
        return (scores + ~allowed * -10.0).softmax(-1)


@FAULTS.part(
    "Each token sees the one after it.",
    "triu(diagonal=2), or tril(1)",
    site=SCORES,
    law=r"causality\..*|activations\..*",
    words=r"future|next|ahead|one after|t ?\+ ?1|off by one|diagonal|sees",
)
class NextTokenSeen(Attention):
    def pattern(self, scores, allowed):
        return super().pattern(scores, allowed | allowed.roll(1, -1))


@FAULTS.part(
    "No token sees itself, but for the first.",
    "tril(-1), as in a strictly causal mask for shifted inputs",
    site=SCORES,
    words=r"itself|diagonal|own|strict",
)
class ItselfHidden(Attention):
    def pattern(self, scores, allowed):
        start = scores.shape[-1] - scores.shape[-2]
        itself = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(start)
        strict = itself.tril(start - 1)
        if not start:
            strict[0, 0] = True
        return super().pattern(scores, allowed & strict)


@FAULTS.part(
    "A token sees the last eight tokens only.",
    "sliding_window of a Mistral configuration",
    site=SCORES,
    words=r"window|last (8|eight)|recent|local|t ?[-−] ?7|sees",
)
class WindowOfEight(Attention):
    WINDOW = 8

    def pattern(self, scores, allowed):
        start = scores.shape[-1] - scores.shape[-2]
        near = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(start - self.WINDOW + 1)
        return super().pattern(scores, allowed & near)


@FAULTS.part(
    "Every second layer sees the last four tokens only.",
    "GPT-Neo's alternating local attention",
    site=r"h\.1\.attn\.(scores|pattern)",
    words=r"window|last (4|four)|local|recent|t ?[-−] ?3|sees",
)
class LocalInOddLayers(WindowOfEight):
    WINDOW = 4

    def pattern(self, scores, allowed):
        if self.layer % 2:
            return super().pattern(scores, allowed)
        return Attention.pattern(self, scores, allowed)


@FAULTS.part(
    "The first token is seen by itself alone.",
    "a sink token that was dropped from the keys",
    site=SCORES,
    words=r"first|source 0|position 0|sink|sees",
)
class FirstTokenHidden(Attention):
    def pattern(self, scores, allowed):
        allowed = allowed.clone().expand(*scores.shape[:1], 1, *scores.shape[-2:]).clone()
        first = 1 if scores.shape[-1] == scores.shape[-2] else 0
        allowed[..., first:, 0] = False
        return super().pattern(scores, allowed)


@FAULTS.part(
    "One is added below the line of the softmax.",
    "softmax1 (Attention is off by one), or a learned sink of zero",
    site=PATTERN,
    words=r"sink|\+ ?1|one more|denominator|below the line|sum|softmax",
)
class SoftmaxOne(Attention):
    def pattern(self, scores, allowed):
        e = scores.exp() * allowed
        return e / (1 + e.sum(-1, keepdim=True))


@FAULTS.part(
    "The softmax is one of base 2.",
    "exp2 in a flash kernel without the factor log2(e)",
    site=PATTERN,
    words=r"base 2|exp2|log ?2|ln ?2|2\^|2\*\*|0\.69|scal|scores ×",
)
class SoftmaxOfBaseTwo(Attention):
    def pattern(self, scores, allowed):
        e = torch.exp2(scores) * allowed
        return e / e.sum(-1, keepdim=True)


@FAULTS.part(
    "The matrix of queries, keys and values is cut head by head.",
    "GPT-NeoX and Megatron order: [H, 3, K] for [3, H, K]",
    site=r"h\.0\.attn\.(scores|qkv|pattern)",
    words=r"head|interleav|group|order|neox|megatron|permut|turns",
)
class CutByHead(Attention):
    def split(self, qkv):
        return list(qkv.unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4))


@FAULTS.part(
    "Keys and values are exchanged.",
    "an order of q, v, k",
    site=r"h\.0\.attn\.(scores|qkv|pattern)",
    words=r"k(eys)? .*v(alues)?|exchang|swap|order|q, v, k",
)
class KeysForValues(Attention):
    def split(self, qkv):
        q, k, v = super().split(qkv)
        return [q, v, k]


@FAULTS.part(
    "Channels are dealt to the heads in turns.",
    "view(K, H) for view(H, K)",
    site=r"h\.0\.attn\.(scores|qkv|pattern)",
    words=r"head|interleav|turns|order|permut|strid",
)
class ChannelsDealt(Attention):
    def by_head(self, part):
        return part.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)


@FAULTS.part(
    "Heads are put together without being moved back behind the tokens.",
    "reshape in the place of transpose(1, 2).reshape",
    site=r"h\.0\.attn\.mix|h\.0\.attn\.out",
    words=r"merge|transpos|permut|order|re-?read|reshape|mixed up|scrambl",
)
class MergedWithoutMoving(Attention):
    def merge(self, mix):
        rows, heads, length, size = mix.shape
        return mix.reshape(rows, length, heads * size)


@FAULTS.part(
    "Heads are put together in reverse order.",
    "a stack that pops its heads",
    site=r"h\.0\.attn\.(mix|out)",
    words=r"head|revers|order|permut",
)
class HeadsReversed(Attention):
    def merge(self, mix):
        return super().merge(mix.flip(1))


@FAULTS.part(
    "Two heads share the keys of one.",
    "grouped-query attention (num_key_value_heads = H / 2) on weights that have all heads",
    site=SCORES + r"|h\.\d\.attn\.qkv",
    words=r"head.*(key|share|group|equal|same|k\b)|key.*head|group",
)
class KeysShared(Attention):
    def scores(self, q, k):
        return super().scores(q, k[:, ::2].repeat_interleave(2, 1))


@FAULTS.part(
    "The output of the last head is lost.",
    "a loop over range(n_head - 1), or tensor parallelism that loses a rank",
    site=r"h\.0\.attn\.(mix|out)",
    words=r"head.*(zero|lost|missing|empty|silent|left out|dropped|0)|zero.*head",
)
class LastHeadLost(Attention):
    def merge(self, mix):
        return super().merge(torch.cat([mix[:, :-1], torch.zeros_like(mix[:, -1:])], 1))


@FAULTS.part(
    "The bias of the values is left out.",
    "Whisper-like blocks, in which one of the three has no bias",
    site=r"h\.0\.attn\.(qkv|mix)",
    words=r"bias",
)
class ValuesWithoutBias(Attention):
    def split(self, qkv):
        width = qkv.shape[-1] // 3
        bias = F.pad(self.c_attn.bias[2 * width :], (2 * width, 0))
        return super().split(qkv - bias)


@FAULTS.part(
    "Scores are computed in float16 and widened for the softmax.",
    "autocast around the first product of attention",
    site=SCORES + r"|",
    law=r"activations\..*|precision|architecture|logits|gradient",
    words=r"float16|half|precision|rounded",
)
class ScoresInHalf(Attention):
    def scores(self, q, k):
        return super().scores(q.half().to(q.dtype), k.half().to(k.dtype)).half().to(q.dtype)


@FAULTS.part(
    "The pattern is rounded to eight bits.",
    "int8 attention probabilities (SageAttention, QAT)",
    site=PATTERN,
    words=r"8.bit|int8|grid|quanti|eight bits|rounded",
)
class PatternInEightBits(Attention):
    def pattern(self, scores, allowed):
        return (super().pattern(scores, allowed) * 127).round() / 127


@FAULTS.part(
    "Dropout acts on the pattern in evaluation as well.",
    "F.dropout(p) without training=self.training",
    law=r"determinism.*",
    words=r"dropout|drops|random|draw",
)
class DropoutAlways(Attention):
    def pattern(self, scores, allowed):
        return F.dropout(super().pattern(scores, allowed), 0.1)


@FAULTS.part(
    "Weights below 0.05 are set to zero and the others are not normalised again.",
    "top-k or threshold-sparse attention",
    site=PATTERN,
    words=r"thresh|sparse|zero|below|small|top|normal|sum",
)
class SmallWeightsDropped(Attention):
    def pattern(self, scores, allowed):
        found = super().pattern(scores, allowed)
        return torch.where(found < 0.05, 0.0, found)
