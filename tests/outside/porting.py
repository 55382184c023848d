"""Mistakes in porting a block and in converting its weights: kernels, shards, folds and formats."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from outside.gpt2 import GPT2, MLP, Attention, Block, Norm
from outside.record import Table

FAULTS = Table()
VALUES = r"weights\..*"
ROUNDED = r"activations\..*|precision|architecture|logits|gradient"
LN = r"h\.0\.ln_1"


@FAULTS.part(
    "A row of the half of the vocabulary that does not hold the id is added to each embedding.",
    "a vocabulary-parallel lookup whose rank does not zero what it has looked up for foreign ids",
    site="embed",
    words=r"rank|shard|half|halves|wte\[|row of|other row|added|extra|constant",
)
class RowOfOtherRank(GPT2):
    def embed(self, ids, positions):
        second = self.config.n_vocab // 2
        foreign = torch.where(ids < second, second, 0)
        return self.drop(self.wte(ids) + self.wte(foreign) + self.wpe(positions))


@FAULTS.weights(
    "The row of the last id is zero.",
    "padding_idx = eos_token_id: an initialisation that zeroes the row of padding after the load",
    law=VALUES,
    words=r"zero|padding|last (row|id|token)|empty",
)
def row_of_padding_zero(w, config):
    w["wte"][-1] = 0


@FAULTS.weights(
    "Every second row of wpe is the mean of its neighbours.",
    "positions interpolated from half as many, as a vision transformer does for larger pictures",
    law=VALUES,
    words=r"mean|interpol|average|neighbour|between|every second|odd|smooth|resampl|resiz",
)
def positions_interpolated(w, config):
    known = np.arange(0, len(w["wpe"]), 2)
    for channel in w["wpe"].T:
        channel[:] = np.interp(np.arange(len(channel)), known, channel[known])


@FAULTS.part(
    "Scores are divided by the root of a head's size after it was padded to a power of two.",
    "a flash kernel for sizes of 8, 16, 32 … that takes its scale from the padded tensor",
    site=r"h\.\d\.attn\.(scores|pattern)",
    words=r"scal|×|divid|root|sqrt|factor|padd|head size",
)
class ScaledByPaddedHead(Attention):
    def scores(self, q, k):
        size = q.shape[-1]
        q, k = (F.pad(x, (0, 2 ** math.ceil(math.log2(size)) - size)) for x in (q, k))
        return super().scores(q, k)


@FAULTS.part(
    "What was summed over earlier keys is not scaled anew when the running maximum grows.",
    "an online softmax over tiles of 16 keys, without exp(m_old − m_new) on its accumulator",
    site=r"h\.\d\.attn\.(pattern|mix)",
    words=r"tile|block|rescal|scaled anew|running|online|16|\bsums?\b|normali|beyond|longer",
)
class TilesNotRescaled(Attention):
    def pattern(self, scores, allowed):
        scores = scores.masked_fill(~allowed, -math.inf)
        tiles = scores.split(16, -1)
        tops = torch.stack([tile.amax(-1) for tile in tiles]).cummax(0).values.clamp(min=-1e9)
        found = [(tile - top[..., None]).exp() for tile, top in zip(tiles, tops, strict=True)]
        return torch.cat(found, -1) / (scores - tops[-1][..., None]).exp().sum(-1, keepdim=True)


@FAULTS.part(
    "In the last layer, every token takes the plain mean of all tokens, future ones too.",
    "a causal buffer that is not in the file and stays at the zeros of an empty allocation",
    site=r"h\.2\.attn\.(scores|pattern)",
    law=r"causality\..*|activations\..*",
    words=r"uniform|even|equal|mean|average|same weight|mask|future|buffer|causal",
)
class MaskOfLastLayerEmpty(Attention):
    def pattern(self, scores, allowed):
        if self.layer == 2:
            hidden = torch.ones_like(allowed)
            return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
        return super().pattern(scores, allowed)


@FAULTS.part(
    "The scale of attention reaches the product of the queries, not their bias.",
    "1 / √K folded into the matrix of the queries by a converter that forgets the vector",
    site=r"h\.0\.attn\.(qkv|scores|pattern)",
    words=r"bias",
)
class QueryBiasNotScaled(Attention):
    def split(self, qkv):
        q, k, v = super().split(qkv)
        bias = self.c_attn.bias.chunk(3)[0].view(self.heads, 1, -1)
        return [q + (math.sqrt(q.shape[-1]) - 1) * bias, k, v]


@FAULTS.part(
    "The bias of attention's output is added twice.",
    "a row-parallel product on two ranks, each of which adds the bias before the all-reduce",
    site=r"h\.0\.attn\.out|h\.0\.resid_mid",
    words=r"bias",
)
class BiasOfEveryRank(Attention):
    def forward(self, x, allowed, past=None):
        y, kept = super().forward(x, allowed, past)
        return y + self.c_proj.bias, kept


@FAULTS.part(
    "Each head mixes the values of the head before it.",
    "an all-to-all of sequence parallelism that deals values to ranks in another order than keys",
    site=r"h\.0\.attn\.(qkv|mix)",
    words=r"head.*(before|next|order|shift|roll|permut|other|neighbour|wrong)|order|permut|roll",
)
class ValuesOfHeadBefore(Attention):
    def split(self, qkv):
        q, k, v = super().split(qkv)
        return [q, k, v.roll(1, 1)]


@FAULTS.part(
    "The second norm gets what attention has found, without the stream that it is added to.",
    "a fused add-and-norm that returns sum and norm, unpacked so that the sum comes too late",
    site=r"h\.0\.(ln_2|mlp\..*|resid_mid)",
    words=r"attn|attention|residual|resid_mid|stream|branch|\bsum\b",
)
class MlpReadsAttentionOnly(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        return x + attended + self.mlp(self.ln_2(attended)), kept


@FAULTS.weights(
    "From the second block on, the first norm is that of the block before.",
    "a norm fused to the end of each layer, which takes ln_1 of its own layer for the next one's",
    law=VALUES + r"|activations\..*",
    words=r"layer|is (that )?of|h0.*h1|h1.*h0|block before|previous|lag|shift|another",
)
def first_norms_lag(w, config):
    for i in reversed(range(1, config.n_layer)):
        for part in "gb":
            w[f"h{i}/ln_1/{part}"] = w[f"h{i - 1}/ln_1/{part}"]


@FAULTS.part(
    "GELU is looked up in a table of all numbers of float16.",
    "ggml's ggml_table_gelu_f16",
    site=r"h\.\d\.mlp\.act|",
    law=ROUNDED,
    words=r"float16|half|table|look.?up|rounded|precision",
)
class GeluFromTable(MLP):
    def act(self, x):
        return super().act(x.half().to(x.dtype)).half().to(x.dtype)


@FAULTS.part(
    "The activation stands in front of the two products, and nothing stands between them.",
    "Sequential(act, c_fc, c_proj), from a block in which activations come first",
    site=r"h\.0\.mlp\.(pre|act)",
    words=r"order|before|in front|activation|activated|gelu|linear",
)
class ActivationFirst(MLP):
    def forward(self, x):
        return self.drop(self.c_proj(self.c_fc(self.act(x))))


@FAULTS.weights(
    "The halves of c_fc are exchanged, and those of the matrix behind it are not.",
    "two tensor-parallel shards that were joined in the order in which their files were listed",
    law=VALUES,
    words=r"order|permut|half|halves|shard|exchang|swap|roll|shift|neuron",
)
def shards_exchanged(w, config):
    for i in range(config.n_layer):
        for part in "wb":
            value = w[f"h{i}/mlp/c_fc/{part}"]
            w[f"h{i}/mlp/c_fc/{part}"] = np.roll(value, value.shape[-1] // 2, axis=-1)


@FAULTS.part(
    "The bias of a norm is added before the gain, and is multiplied by it.",
    "(x̂ + b) · g, an affine map written from memory",
    site=LN,
    words=r"bias|shift|before the gain|order",
)
class BiasBeforeGain(Norm):
    def forward(self, x):
        return (F.layer_norm(x, x.shape[-1:], eps=1e-5) + self.bias) * self.weight


@FAULTS.part(
    "The root below the line of a norm is good to three digits.",
    "the fast inverse square root, 0x5f3759df, with one step of Newton's",
    site=LN,
    words=r"root|rsqrt|approx|newton|inverse|factor|scal|×|varian|deviation|precision",
)
class RootApproximated(Norm):
    def forward(self, x):
        with torch.no_grad():
            power = x.var(-1, keepdim=True, correction=0).float() + 1e-5
            root = (0x5F3759DF - (power.view(torch.int32) >> 1)).view(torch.float32)
            error = root * (1.5 - 0.5 * power * root * root) * power.sqrt()
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * error.to(x) * self.weight + self.bias


@FAULTS.weights(
    "The first norm of a block is folded into c_attn, and its bias is lost.",
    "a conversion that multiplies W by the gain and forgets to add b W to the bias",
    law=VALUES + r"|activations\..*",
    words=r"fold|fus|absorb|ln_1/b|bias|\bones\b|identity",
)
def folded_without_bias(w, config):
    for i in range(config.n_layer):
        w[f"h{i}/attn/c_attn/w"] *= w[f"h{i}/ln_1/g"][:, None]
        w[f"h{i}/ln_1/g"][:] = 1
        w[f"h{i}/ln_1/b"][:] = 0


@FAULTS.weights(
    "The zero point of quantised columns is off by one.",
    "GPTQ's qzeros, which are stored less one, read by a kernel that does not know it",
    law=VALUES,
    words=r"zero.?point|offset|constant|shift|\bstep|8.bit|int8|grid|quanti|eight",
)
def zero_point_off_by_one(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/mlp/c_fc/w"]
        low, high = value.min(0, keepdims=True), value.max(0, keepdims=True)
        scale = (high - low) / 255
        steps = np.round((value - low) / scale)
        w[f"h{i}/mlp/c_fc/w"] = ((steps - 1) * scale + low).astype(np.float32)


@FAULTS.part(
    "Logits have their mean over the vocabulary taken away.",
    "TransformerLens's center_unembed, which leaves probabilities as they are",
    site=r"logits",
    words=r"mean|centr|constant|subtract|average|taken away|offset",
)
class LogitsCentred(GPT2):
    def head(self, x):
        logits = super().head(x)
        return logits - logits.mean(-1, keepdim=True)


@FAULTS.part(
    "The logits of the two halves of the vocabulary are exchanged.",
    "an all-gather of a vocabulary-parallel head, put together in the order of arrival",
    site=r"logits",
    words=r"half|halves|shard|exchang|swap|order|permut|roll|shift|rank",
)
class HalvesOfLogitsExchanged(GPT2):
    def head(self, x):
        first, second = super().head(x).chunk(2, -1)
        return torch.cat([second, first], -1)
