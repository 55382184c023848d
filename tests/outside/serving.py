"""Mistakes of engines that serve and train: caches, masks, batches, generation and gradients."""

import torch
from torch.nn import functional as F

from outside.gpt2 import GPT2, MLP, Attention, Block, Norm
from outside.record import Table

FAULTS = Table()
CACHE = r"cache(\..*)?"
HISTORY = r"(history|calls|determinism|lengths|cache|batch|causality|positions)(\..*)?"
MASKS = r"(padding|positions|masks?|cache|loss)(\..*)?"
BATCH = r"batch(\..*)?"
LOSS = r"loss\..*"
GRADIENT = r"gradient|tying\.gradient|training.*|causality\.gradient|symmetry\.gradient"


@FAULTS.part(
    "The second page of sixteen cached tokens is read from the place of the first.",
    "a block table whose second entry is never set",
    law=CACHE,
    words=r"page|block table|16|sixteen|slot|repeat|wrap|modulo|overwr|forg|lost|longer|beyond",
)
class SecondPageIsFirst(Attention):
    def joined(self, old, new):
        pages = [old[:, :, at : at + 16] for at in range(0, old.shape[2], 16)]
        if len(pages) > 1:
            pages[1] = pages[0][:, :, : pages[1].shape[2]]
        return torch.cat([*pages, new], dim=2)


@FAULTS.part(
    "A step lengthens the cache that it was handed, so that no second step can begin there.",
    "a cache that is an object (DynamicCache), reused for candidates or a rejected draft",
    law=CACHE + "|" + HISTORY,
    words=r"in place|reus|mutat|fork|branch|overwr|same cache|second time|twice|grow|lengthen"
    r"|chang|alias|caller|shared",
)
class CacheGrowsInPlace(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        logits, kept = super().run(ids, mask, positions, past)
        if isinstance(past, list):
            past[:] = kept
            kept = past
        return logits, kept


@FAULTS.part(
    "Keys and values of a step are cut off at the largest that each channel had before.",
    "scales of a quantised cache that are measured in the prefill, and saturate afterwards",
    law=CACHE,
    words=r"clip|clamp|cut|saturat|range|limit|largest|\bcap",
)
class CutToPrefill(Attention):
    def joined(self, old, new):
        limit = old.abs().amax(2, keepdim=True)
        return super().joined(old, new.clamp(-limit, limit))


@FAULTS.part(
    "Values are cached with tokens behind channels, and read as if it were the other way round.",
    "a cache whose values lie as [H, K, S] for a kernel, viewed as [H, S, K]",
    law=CACHE,
    words=r"transpos|layout|reshap|re-?read|scrambl|mixed|order|permut|strid|values?\b.*cache"
    r"|cache.*\bvalues?\b",
)
class ValuesCachedTransposed(Attention):
    def kept(self, k, v):
        return k, v.transpose(-1, -2).reshape(v.shape)


@FAULTS.part(
    "The last block is computed for the last token of a call only.",
    "a prefill that saves what sampling does not read, and is asked for all logits (logits_all)",
    site=r"h\.2\..*",
    law=r"activations\..*|logits|cache.*|causality.*|lengths|architecture",
    words=r"last token|only|(block|layer).*(skip|left out|missing|not run|passed)"
    r"|(skip|without|left out|missing).*(block|layer)|not added",
)
class LastBlockForLastToken(Block):
    def forward(self, x, allowed, past=None):
        found, kept = super().forward(x, allowed, past)
        if self.layer == 2:
            found = torch.cat([x[:, :-1], found[:, -1:]], 1)
        return found, kept


@FAULTS.part(
    "The argument position_ids is taken, and nothing is done with it.",
    "**kwargs that swallow what an interface must have",
    law=r"(positions|padding|masks?|cache)(\..*)?",
    words=r"position_ids|position.*(ignor|argument|handed|given)|(ignor|argument).*position",
)
class PositionIdsIgnored(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        return super().run(ids, mask, None, past)


@FAULTS.part(
    "Padding at the left sees nothing, not even itself, and its NaN reaches the other tokens.",
    "a softmax over −∞ alone, and 0 · NaN in the layer after it",
    law=MASKS,
    words=r"\bnan\b|finite|empty|nothing|itself|no (source|token|key)|−?-?inf|∞",
)
class PaddingSeesNothing(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        return found if mask is None else found & self.visible(mask)[:, None]


@FAULTS.part(
    "Padding is hidden in the first block only.",
    "a mask that is handed to the first layer, and None to the others",
    law=MASKS,
    words=r"first (block|layer)|layer|block|h\.[01]|padding.*(seen|sees)|(seen|sees).*padding",
)
class PaddingHiddenOnce(Block):
    def forward(self, x, allowed, past=None):
        if self.layer:
            length, seen = allowed.shape[-2:]
            allowed = torch.ones_like(allowed).tril(seen - length)
        return super().forward(x, allowed, past)


@FAULTS.part(
    "Where a mask is given, tokens see the future.",
    "scaled_dot_product_attention(attn_mask=padding, is_causal=mask is None)",
    law=MASKS + r"|causality\..*",
    words=r"causal|future|ahead|later token|both (ways|sides)|bidirection",
)
class CausalOrMasked(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        return found if mask is None else found | self.visible(mask)[:, None]


@FAULTS.part(
    "In a batch of an odd number of rows, the MLP of the last row is not computed.",
    "a grid of B // 2 thread blocks, each of which takes two rows",
    law=BATCH,
    words=r"\bodd|last row|zero|missing|lost|number of rows|batch size|batch of|other rows?",
)
class OddRowLost(MLP):
    def forward(self, x):
        found = super().forward(x)
        if len(x) > 1 and len(x) % 2:
            found = torch.cat([found[:-1], torch.zeros_like(found[-1:])])
        return found


@FAULTS.part(
    "All rows of a batch see the first row's key and value of the first token.",
    "cascade attention, which takes for granted that a batch has a prefix in common",
    law=BATCH,
    words=r"first|prefix|shared?\b|in common|another row|other rows?|across",
)
class PrefixTakenForGranted(Attention):
    _begins = True

    def forward(self, x, allowed, past=None):
        self._begins = past is None
        return super().forward(x, allowed, past)

    def split(self, qkv):
        q, *both = super().split(qkv)
        if self._begins:
            both = [torch.cat([x[:1, :, :1].expand_as(x[:, :, :1]), x[:, :, 1:]], 2) for x in both]
        return [q, *both]


@FAULTS.part(
    "Generated tokens are marked as padding.",
    "a mask that is lengthened by zeros, the default of F.pad",
    law=r"generat.*",
    words=r"mask|padd|new token|generated token",
)
class GeneratedArePadding(GPT2):
    @torch.no_grad()
    def generate(self, input_ids, attention_mask=None, max_new_tokens=8, do_sample=False):
        ids, new, past = input_ids, input_ids, None
        for _ in range(max_new_tokens):
            found = self(new, attention_mask, past_key_values=past, use_cache=True)
            past, new = found["past_key_values"], self.following(found["logits"])
            ids = torch.cat([ids, new], dim=1)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1))
        return ids


@FAULTS.part(
    "All rows go on with the token that the first row has chosen.",
    "logits[0, -1].argmax() in a loop that was written for one prompt",
    law=r"generat.*",
    words=r"\brows?\b|batch|first prompt|same token",
)
class FirstRowChooses(GPT2):
    def following(self, logits):
        return super().following(logits[:1]).expand(len(logits), 1)


@FAULTS.part(
    "A prompt of one token is taken for a step after the call before.",
    "if input_ids.shape[1] == 1: the branch for decoding, with the cache that the model keeps",
    law=HISTORY,
    words=r"one token|single|length 1|left over|stale|earlier|history|previous|last call|\bstate",
)
class OneTokenIsAStep(GPT2):
    _past = None

    def run(self, ids, mask=None, positions=None, past=None):
        before = self._past
        fresh = past is None and mask is None and positions is None and ids.shape[1] == 1
        if fresh and before is not None and before[0][0].dtype == self.wte.weight.dtype:
            fits = len(before[0][0]) == len(ids) and self.seen(before) < self.config.n_ctx
            past = before if fits else None
        logits, kept = super().run(ids, mask, positions, past)
        self._past = [(k.detach(), v.detach()) for k, v in kept]
        return logits, kept


@FAULTS.part(
    "The head of inference multiplies by a copy of its matrix that the first call has made.",
    "weights packed once for a faster product, while training or a load goes on changing them",
    law=r"tying.*|training.*|reload.*|history.*|resiz.*|calls.*|determinism.*|weights\..*",
    words=r"stale|copy|copied|pack|first call|earlier|cached|remember|\bold\b|tied|tying|separate",
)
class HeadPrepacked(GPT2):
    def head(self, x):
        if self.training or torch.is_grad_enabled():
            return super().head(x)
        packed = self.__dict__.setdefault("_packed", {})
        if x.dtype not in packed:
            packed[x.dtype] = self.lm_head.weight.detach().T.clone()
        return self.ln_f(x) @ packed[x.dtype]


def _tf32(x):
    """Rounded to ten bits behind the point; the gradient passes as it is."""
    bits = x.detach().float().contiguous().view(torch.int32)
    rounded = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    return x + (rounded.to(x.dtype) - x).detach()


@FAULTS.part(
    "Both sides of the MLP's products are rounded to the ten bits of TF32.",
    "torch.backends.cuda.matmul.allow_tf32, or set_float32_matmul_precision('high')",
    site=r"h\.\d\.mlp\.(pre|out)|",
    law=r"activations\..*|precision|architecture|logits|gradient",
    words=r"tf32|tensorfloat|precision|rounded|half|float16|(10|ten).bit|mantissa",
)
class ProductsInTf32(MLP):
    def forward(self, x):
        x = self.act(F.linear(_tf32(x), _tf32(self.c_fc.weight), self.c_fc.bias))
        return self.drop(F.linear(_tf32(x), _tf32(self.c_proj.weight), self.c_proj.bias))


@FAULTS.part(
    "The loss is a mean over rows of each row's mean, however many labels a row has.",
    "gradient accumulation that averages the losses of its steps, as transformers did until 2024",
    law=LOSS,
    words=r"\brows?\b|mean of|average|per.sequence|each sequence|weigh",
)
class MeanOfMeans(GPT2):
    def loss(self, logits, labels):
        wanted = labels[:, 1:]
        nats = F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="none")
        counts = (wanted != -100).sum(1).clamp(min=1)
        return (nats.sum(1) / counts).mean()


@FAULTS.part(
    "Tokens that do not fill a chunk of eight are left out of the loss.",
    "a chunked cross entropy (fused with the head) that runs over N // 8 chunks",
    law=LOSS,
    words=r"chunk|last|remainder|dropped|left out|multiple|eight|\b8\b|missing|some tokens",
)
class LastChunkLost(GPT2):
    def loss(self, logits, labels):
        logits, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        count = len(wanted) // 8 * 8 or len(wanted)
        return F.cross_entropy(logits[:count], wanted[:count], ignore_index=-100)


@FAULTS.part(
    "Of a token that occurs several times, the last place alone sends a gradient to its row.",
    "a backward pass of the lookup that writes grad[ids] = d, where it should have added",
    law=GRADIENT,
    words=r"repeat|duplicat|accumul|scatter|same token|several|occurr?|overwr|lookup|embed|wte",
)
class RepeatedIdsOverwrite(GPT2):
    def embed(self, ids, positions):
        rows, flat = self.wte(ids), ids.flatten()
        last = ~(flat[:, None] == flat).triu(1).any(1).view(*ids.shape, 1)
        if rows.requires_grad:
            rows.register_hook(lambda d: d * last)
        return self.drop(rows + self.wpe(positions))


@FAULTS.part(
    "Mean and variance of a norm are constants to the gradient.",
    "a hand-written backward pass, g · d / σ, without the two sums",
    law=GRADIENT,
    words=r"layer.?norm|norms\b|\bnorm'?s?\b|ln_\w|varian|\bmean|statistic|detach|constant",
)
class StatisticsDetached(Norm):
    def forward(self, x):
        mean = x.detach().mean(-1, keepdim=True)
        variance = x.detach().var(-1, keepdim=True, correction=0)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias
