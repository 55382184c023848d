"""Mistakes that only a cache shows, and generation."""

import torch

from outside.gpt2 import GPT2, Attention, Block
from outside.record import Table

FAULTS = Table()
CACHE = r"cache(\..*)?"
#: With a padded batch: whatever its law is called.
PADDED = r"(cache|padding|positions|masks?)(\..*)?"


@FAULTS.part(
    "The position of a step is that of the last token in the cache.",
    "past_length - 1, as for an index",
    law=CACHE,
    words=r"position.*(lag|one|late|behind|before|last|off|used|minus|[-−] ?1)",
)
class StepLags(GPT2):
    def positions(self, ids, mask, start):
        return (super().positions(ids, mask, start) - (1 if start else 0)).clamp(min=0)


@FAULTS.part(
    "Every step has position 0.",
    "arange(T) of the new tokens alone",
    law=CACHE,
    words=r"position.*(0|zero|begin|start|anew|again|used|restart|first|cache)",
)
class StepAtZero(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, mask, start if mask is not None else 0)


@FAULTS.part(
    "The cache keeps the last six tokens.",
    "a rolling buffer of a model with a window",
    law=CACHE,
    words=r"window|last (6|six)|oldest|forg|roll|drop|slots?|sees|evict|lost",
)
class CacheOfSix(Attention):
    def joined(self, old, new):
        room = max(old.shape[2] - 6, 0)
        return torch.cat([torch.zeros_like(old[:, :, :room]), old[:, :, room:], new], 2)

    def pattern(self, scores, allowed):
        start = scores.shape[-1] - scores.shape[-2]
        if start > 6:
            allowed = allowed & (torch.arange(scores.shape[-1]) >= start - 6)
        return super().pattern(scores, allowed)


@FAULTS.part(
    "With a cache, the tokens of one call see each other's future.",
    "is_causal only where there is no past",
    law=CACHE,
    words=r"future|causal|mask|several|chunk|more than one|each other|sees",
)
class ChunkWithoutMask(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        if start and mask is None:
            found = torch.ones_like(found)
        return found


@FAULTS.part(
    "With a cache, the causal mask lies at the upper left.",
    "scaled_dot_product_attention(is_causal=True) with fewer targets than sources",
    law=CACHE,
    words=r"upper|left|align|mask|first|sees|pattern|corner|causal",
)
class MaskAtUpperLeft(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        if start and mask is None:
            found = torch.ones_like(found).tril()
        return found


@FAULTS.part(
    "A step does not see its own token.",
    "attention that runs before the cache is written",
    law=CACHE,
    words=r"itself|own|current|newest|written|sees|mask|new(est)? (key|token)",
)
class StepBlindToItself(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        if start and ids.shape[1] == 1 and mask is None:
            found = found.clone()
            found[..., -1] = False
        return found


@FAULTS.part(
    "The first token of the cache holds zeros.",
    "a prefill that advances the cache before it writes into it",
    law=CACHE,
    words=r"zero|first|slot|empty|token 0|never written|lost",
)
class FirstSlotZero(Attention):
    def kept(self, k, v):
        k, v = k.clone(), v.clone()
        k[:, :, 0] = v[:, :, 0] = 0
        return k, v


@FAULTS.part(
    "Two slots that nobody has filled are seen as well.",
    "a buffer rounded up to a multiple, without a mask",
    law=CACHE,
    words=r"zero|slot|empty|unfilled|unwritten|beyond|padding|extra|two more|buffer",
)
class EmptySlotsSeen(Attention):
    def pattern(self, scores, allowed):
        if scores.shape[-1] > scores.shape[-2]:
            empty = torch.zeros_like(scores[..., :2])
            both = torch.cat([scores.masked_fill(~allowed, -torch.inf), empty], -1)
            return both.softmax(-1)[..., :-2]
        return super().pattern(scores, allowed)


@FAULTS.part(
    "All layers read the cache of the first.",
    "past[0] for past[i]",
    law=CACHE,
    words=r"layer|h\.0|first|shared|same|another",
)
class CacheOfFirstLayer(GPT2):
    def blocks(self, x, allowed, past):
        return super().blocks(x, allowed, None if past is None else [past[0]] * len(past))


@FAULTS.part(
    "Keys and values are cached in float16.",
    "a half-precision cache beside a float32 model",
    law=CACHE,
    words=r"float16|half|precision|rounded",
)
class CacheInHalf(Attention):
    def kept(self, k, v):
        return k.half().to(k.dtype), v.half().to(v.dtype)


@FAULTS.part(
    "Keys and values are cached in eight bits, with one scale for a call.",
    "a quantised cache (KIVI, llama.cpp's q8_0)",
    law=CACHE,
    words=r"8.bit|int8|grid|quanti|eight|rounded",
)
class CacheInEightBits(Attention):
    def kept(self, k, v):
        return tuple((x / (x.abs().max() / 127)).round() * (x.abs().max() / 127) for x in (k, v))


@FAULTS.part(
    "Cached values have lost their bias.",
    "a bias that is added after the cache is written",
    law=CACHE,
    words=r"bias",
)
class CachedWithoutBias(Attention):
    def forward(self, x, allowed, past=None):
        y, (k, v) = super().forward(x, allowed, past)
        bias = self.c_attn.bias.chunk(3)[2].view(1, self.heads, 1, -1)
        new = torch.arange(v.shape[2])[:, None] >= v.shape[2] - x.shape[1]
        return y, (k, torch.where(new, v - bias, v))


@FAULTS.part(
    "The newest keys are put in front of the cache.",
    "cat([new, old])",
    law=CACHE,
    words=r"order|front|several|chunk|more than one|mask|future|sees|before",
)
class NewestInFront(Attention):
    def joined(self, old, new):
        return torch.cat([new, old], dim=2)


@FAULTS.part(
    "Every row reads the cache of the first row.",
    "an index of a beam that is always 0",
    law=CACHE + r"|batch.*",
    words=r"row|beam|batch|first",
)
class CacheOfFirstRow(Attention):
    def joined(self, old, new):
        return torch.cat([old[:1].expand_as(old), new], 2)


@FAULTS.part(
    "The first block forgets what it has cached.",
    "an off-by-one between the list of layers and the list of caches",
    law=CACHE,
    words=r"layer 0|h\.0|first (layer|block)|block|layer|forg|sees|empty",
)
class FirstBlockForgets(Block):
    def forward(self, x, allowed, past=None):
        if past is not None and self.layer == 0:
            _, kept = self.attn(self.ln_1(x), allowed, past)
            attended, _ = self.attn(self.ln_1(x), allowed[..., -x.shape[1] :])
            x = x + attended
            return x + self.mlp(self.ln_2(x)), kept
        return super().forward(x, allowed, past)


@FAULTS.part(
    "With a mask and a cache, all rows have the position of the longest.",
    "position_ids from cache_position in the place of the mask",
    law=PADDED,
    words=r"position",
)
class StepOfLongestRow(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, None if start else mask, start)


@FAULTS.part(
    "With a cache, padding that was cached is seen.",
    "a mask that is cut to the new tokens",
    law=PADDED,
    words=r"padding|mask|cached|sees|seen",
)
class CachedPaddingSeen(GPT2):
    def visible(self, mask):
        return mask.bool()[:, None, :]

    def allowed(self, ids, mask, start):
        return super().allowed(ids, None if start else mask, start)


@FAULTS.part(
    "Greedy decoding takes the second best token.",
    "topk(2)[1], or an argmax over logits whose best was suppressed",
    law=r"generat.*",
    words=r"generat|greedy|argmax|second|token",
)
class SecondBest(GPT2):
    def following(self, logits):
        return logits[:, -1].topk(2).indices[:, 1:]


@FAULTS.part(
    "Greedy decoding reads the logits of the last but one token in its first step.",
    "prompt[:-1] fed first, and the last token forgotten",
    law=r"generat.*",
    words=r"generat|greedy|argmax|position|last but one|step",
)
class OneStepBehind(GPT2):
    def following(self, logits):
        return logits[:, max(logits.shape[1] - 2, 0)].argmax(-1, keepdim=True)


@FAULTS.part(
    "Generation does without the mask of a padded batch.",
    "generate(input_ids) without attention_mask",
    law=r"generat.*",
    words=r"generat|mask|padding|greedy",
)
class GeneratesWithoutMask(GPT2):
    def generate(self, input_ids, attention_mask=None, max_new_tokens=8, do_sample=False):
        return super().generate(input_ids, None, max_new_tokens)


@FAULTS.part(
    "Generation never chooses a token that the prompt has.",
    "repetition_penalty or no_repeat_ngram_size of a configuration",
    law=r"generat.*",
    words=r"generat|greedy|argmax|repe|token",
)
class NeverRepeats(GPT2):
    def generate(self, input_ids, attention_mask=None, max_new_tokens=8, do_sample=False):
        self._said = input_ids
        try:
            return super().generate(input_ids, attention_mask, max_new_tokens)
        finally:
            self._said = None

    def following(self, logits):
        if getattr(self, "_said", None) is not None:
            logits = logits.scatter(-1, self._said[:, None].expand(-1, logits.shape[1], -1), -1e9)
        return super().following(logits)
