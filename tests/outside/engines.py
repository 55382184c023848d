"""Mistakes of fast engines: kernels, shards, packed weights, pages, decoding and fused losses."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from outside.gpt2 import GPT2, MLP, Attention, Block, Norm
from outside.record import Table

FAULTS = Table()
VALUES = r"weights\..*"
CACHE = r"cache(\..*)?"
HISTORY = r"(history|calls|determinism|lengths|cache|batch|causality|positions)(\..*)?"
MASKS = r"(padding|positions|masks?|cache|loss|batch)(\..*)?"
GENERATION = r"generat.*"
LOSS = r"loss\..*"
GRADIENT = r"gradient.*|tying\.gradient|training.*|causality\.gradient|symmetry\.gradient"
ACCUMULATED = GRADIENT + r"|loss(\..*)?|(accumul|calls|history|determinism).*"


@FAULTS.part(
    "In each tile of sixteen queries, no query sees the second eight keys of its own tile.",
    "a flash kernel whose loop ends at start_m * BLOCK_M + BLOCK_N, with BLOCK_N half of BLOCK_M",
    site=r"h\.0\.attn\.(scores|pattern)",
    words=r"tile|block|eight|sixteen|\b(8|16)\b|itself|own (token|key)|hidden|not see|unseen|mask"
    r"|miss|recent|nearest|diagonal",
)
class LoopEndsEarly(Attention):
    def pattern(self, scores, allowed):
        length, seen = scores.shape[-2:]
        rows = torch.arange(length, device=scores.device)[:, None]
        keys = torch.arange(seen, device=scores.device) - (seen - length)
        allowed = allowed & (keys < rows // 16 * 16 + 8)
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) * allowed


@FAULTS.part(
    "The lanes that fill the width up to a power of two count in the variance of a norm.",
    "a Triton kernel without tl.where(cols < N, x - mean, 0.0)",
    site=r"h\.0\.ln_1",
    words=r"varian|deviation|\bmean|lanes?\b|padd|power of two|factor|scal|×",
)
class LanesBeyondWidth(Norm):
    def forward(self, x):
        width = x.shape[-1]
        mean = x.mean(-1, keepdim=True)
        lanes = F.pad(x, (0, 2 ** math.ceil(math.log2(width)) - width)) - mean
        variance = lanes.square().sum(-1, keepdim=True) / width
        return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


@FAULTS.part(
    "Hidden scores are set to zero, and get their share of the softmax.",
    "scores * tril, where scores.masked_fill(tril == 0, -inf) was meant",
    site=r"h\.0\.attn\.(scores|pattern)",
    law=r"causality\..*|activations\..*",
    words=r"zero|\b0\b|multipl|mask|future|causal|ahead|later token|hidden|leak",
)
class HiddenScoresZero(Attention):
    def pattern(self, scores, allowed):
        return (scores * allowed).softmax(-1)


@FAULTS.part(
    "GELU's tanh has become a logistic function of the same argument, not of twice that.",
    "tanh u = 2 σ(2u) − 1, used in a kernel as x σ(u)",
    site=r"h\.0\.mlp\.act",
    words=r"gelu|sigmoid|logistic|tanh|σ|twice|half|factor|silu|swish|steep",
)
class SigmoidOfHalf(MLP):
    def act(self, x):
        return x * torch.sigmoid(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@FAULTS.part(
    "The second norm takes mean and variance of the stream before attention is added to it.",
    "a fused add-and-norm whose reduction reads the registers from before the addition",
    site=r"h\.0\.(ln_2|mlp\.pre)",
    words=r"statistic|\bmean|varian|deviation|before|without|residual|resid_\w+|stream|\bsum\b",
)
class StatisticsBeforeSum(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        found = x + attended
        root = (x.var(-1, keepdim=True, correction=0) + 1e-5).rsqrt()
        normed = (found - x.mean(-1, keepdim=True)) * root * self.ln_2.weight + self.ln_2.bias
        return found + self.mlp(normed), kept


@FAULTS.part(
    "The stream passes the last norm between the second block and the third as well.",
    "pipeline stages that all run the same forward pass, ln_f included",
    site=r"h\.1\.(resid\w*|out)|h\.2\.(resid\w*|ln_1)",
    law=r"activations\..*|architecture|logits",
    words=r"ln_f|last norm|final norm|norm|stage|between",
)
class LastNormOfEveryStage(GPT2):
    def blocks(self, x, allowed, past):
        kept = []
        for layer, block in enumerate(self.h):
            if layer == (len(self.h) + 1) // 2:
                x = self.ln_f(x)
            before = None if past is None else past[layer]
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x, new = recomputed(block, x, allowed, before, use_reentrant=False)
            else:
                x, new = block(x, allowed, before)
            kept.append(new)
        return x, kept


@FAULTS.weights(
    "The matrix of queries, keys and values is read as three matrices that lie one after another.",
    "w.reshape(3, D, D) of a Conv1D matrix whose columns, not rows, are those of q, k and v",
    law=VALUES,
    words=r"reshap|view|order|permut|rearrang|shuffl|scrambl|layout|\bcut\b|split|by rows?"
    r"|transpos",
)
def attention_cut_by_rows(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/attn/c_attn/w"]
        parts = value.reshape(3, len(value), len(value))
        w[f"h{i}/attn/c_attn/w"] = np.concatenate(list(parts), axis=1)


@FAULTS.weights(
    "Each group of eight inputs of c_fc is multiplied by the scales of the group after it.",
    "weights of eight bits with a scale for each group, and an index of groups that is off by one",
    law=VALUES,
    words=r"scal|factor|×|group|ratio|eight|\b8\b",
)
def scales_of_next_group(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/mlp/c_fc/w"]
        groups = value.reshape(len(value) // 8, 8, -1)
        scales = np.abs(groups).max(1, keepdims=True) / 127
        codes = np.round(groups / np.maximum(scales, 1e-12))
        w[f"h{i}/mlp/c_fc/w"] = (codes * np.roll(scales, -1, 0)).reshape(value.shape)


@FAULTS.weights(
    "The largest half per cent of the values of each of the MLP's matrices is missing.",
    "SqueezeLLM and SpQR, which keep outliers in a sparse matrix that somebody forgot to add",
    law=VALUES,
    words=r"outlier|largest|extreme|sparse|zero|missing|\bcut|clip|prun"
    r"|few (values|entries|elements)",
)
def outliers_not_added(w, config):
    for i in range(config.n_layer):
        for matrix in ("c_fc", "c_proj"):
            value = w[f"h{i}/mlp/{matrix}/w"]
            value[np.abs(value) > np.quantile(np.abs(value), 0.995)] = 0


@FAULTS.weights(
    "The second half of the layers holds the weights of the first ones.",
    "a pipeline stage that loads layer i of the file where layer i + first was meant",
    law=VALUES + r"|activations\..*",
    words=r"layer|block|is (that )?of|h0|offset|stage|repeat|same as|another",
)
def stage_without_offset(w, config):
    first = (config.n_layer + 1) // 2
    for name in w:
        layer, _, part = name.partition("/")
        if part and layer[1:].isdigit() and int(layer[1:]) >= first:
            w[name] = w[f"h{int(layer[1:]) - first}/{part}"].copy()


@FAULTS.part(
    "Where several tokens follow a cache at once, all of them have the position of the first.",
    "input_pos as one number, which is enough until a draft of several tokens has to be verified",
    law=CACHE + r"|positions(\..*)?|lengths",
    words=r"position",
)
class DraftSharesPosition(GPT2):
    def positions(self, ids, mask, start):
        found = super().positions(ids, mask, start)
        return found[:, :1].expand_as(found) if start else found


@FAULTS.part(
    "A step that sees more than eight tokens takes the plain average over splits of eight.",
    "flash decoding that merges its splits without their log-sum-exp",
    law=CACHE,
    words=r"split|chunk|averag|\bmean\b|merg|combin|weigh|normali|pattern|softmax|eight|\b8\b"
    r"|longer|beyond",
)
class SplitsAveraged(Attention):
    def pattern(self, scores, allowed):
        if scores.shape[-2] > 1 or scores.shape[-1] <= 8:
            return super().pattern(scores, allowed)
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        splits = [split.softmax(-1) for split in scores.split(8, -1)]
        return torch.cat(splits, -1) * allowed / len(splits)


@FAULTS.part(
    "A step that begins a page of sixteen writes its token over the last one of the page before.",
    "a page that is asked for when length > 16 n, where length >= 16 n was meant",
    law=CACHE,
    words=r"page|16|sixteen|slot|overwr|lost|forg|boundary|replac|multiple|longer|beyond|zero",
)
class PageBegunTooLate(Attention):
    def joined(self, old, new):
        found = super().joined(old, new)
        for at in range(16, found.shape[2], 16):
            if at >= old.shape[2]:
                token = found[:, :, at : at + 1]
                around = found[:, :, : at - 1], found[:, :, at + 1 :]
                found = torch.cat([around[0], token, torch.zeros_like(token), around[1]], 2)
        return found


@FAULTS.part(
    "Logits that were returned are overwritten by the next call of the same shape.",
    "a captured CUDA graph, whose static output is handed out without a clone",
    law=HISTORY + r"|logits",
    words=r"overwr|buffer|in place|alias|next call|later call|returned|shared|reus|mutat|memory"
    r"|chang",
)
class LogitsInStaticBuffer(GPT2):
    def head(self, x):
        logits = super().head(x)
        if torch.is_grad_enabled():
            return logits
        inference = torch.is_inference_mode_enabled()
        graph = logits.shape, logits.dtype, logits.device, inference
        return self.__dict__.setdefault("_out", {}).setdefault(graph, logits).copy_(logits)


class _KnownBlocks(Attention):
    tokens = None

    def split(self, qkv):
        q, k, v = super().split(qkv)
        if self.tokens is None:
            return [q, k, v]
        k, v = k.clone(), v.clone()
        for row, ids in enumerate(self.tokens):
            for at in range(8, len(ids) - 7, 8):
                place = row, slice(None), slice(at, at + 8)
                key = at, tuple(ids[at : at + 8]), k.dtype
                known = self.known.setdefault(key, (k[place].clone(), v[place].clone()))
                k[place], v[place] = known
        return [q, k, v]


@FAULTS.part(
    "Keys and values are reused for eight tokens that were there before, whatever precedes them.",
    "a prefix cache whose hash of a block leaves out the hash of the block before",
    law=HISTORY + r"|activations\..*|logits",
    words=r"prefix|earlier|before|reus|remember|stale|hash|history|previous|left over|memo|cached"
    r"|another (prompt|input|row)|other rows?|\bstate\b",
)
class BlockHashWithoutParent(GPT2):
    def __init__(self, config, replaced=None):
        super().__init__(config, _KnownBlocks)

    def run(self, ids, mask=None, positions=None, past=None):
        given = any(value is not None for value in (mask, positions, past))
        weights = [(x.data_ptr(), x._version) for x in self.parameters()]
        for block in self.h:
            if self.__dict__.get("_weights") != weights:
                block.attn.known = {}
            block.attn.tokens = None if given or torch.is_grad_enabled() else ids.tolist()
        self._weights = weights
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Attention's output of a left-padded row is put back as if padding stood on the right.",
    "pad_input after a varlen kernel, with an index that is made of lengths alone",
    law=MASKS,
    words=r"padd|shift|left|right|moved|align|mask|offset|other token",
)
class PutBackAtTheLeft(Attention):
    def pattern(self, scores, allowed):
        found = super().pattern(scores, allowed)
        length, seen = found.shape[-2:]
        if length < seen or length == 1:
            return found
        padding = (allowed[:, 0, -1].long().cumsum(-1) == 0).sum(-1)
        source = torch.arange(length, device=found.device) + padding[:, None]
        at = source.clamp(max=length - 1)[:, None, :, None].expand(found.shape)
        return found.gather(2, at) * (source < length)[:, None, :, None]


@FAULTS.part(
    "A best token in the second half of the vocabulary is given its number within that half.",
    "an argmax over a sharded vocabulary that does not add the first id of the shard",
    law=GENERATION,
    words=r"half|shard|offset|second|vocabulary|argmax|best|greedy|another token|other token"
    r"|largest",
)
class ArgmaxOfShard(GPT2):
    def following(self, logits):
        shards = logits[:, -1].split((logits.shape[-1] + 1) // 2, -1)
        best, ids = zip(*(shard.max(-1) for shard in shards), strict=True)
        return torch.stack(ids, -1).gather(-1, torch.stack(best, -1).argmax(-1, keepdim=True))


@FAULTS.part(
    "The first new token of a padded prompt is read at the number of its real tokens.",
    "logits[range(B), mask.sum(1) - 1], which is right where padding stands on the right",
    law=GENERATION,
    words=r"padd|left|mask",
)
class LastTokenByLength(GPT2):
    @torch.no_grad()
    def generate(self, input_ids, attention_mask=None, max_new_tokens=8, do_sample=False):
        ids, new, past = input_ids, input_ids, None
        for _ in range(max_new_tokens):
            found = self(new, attention_mask, past_key_values=past, use_cache=True)
            logits = found["logits"]
            if attention_mask is not None and past is None:
                last = attention_mask.long().sum(1) - 1
                logits = logits[torch.arange(len(last)), last][:, None]
            past, new = found["past_key_values"], self.following(logits)
            ids = torch.cat([ids, new], dim=1)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
        return ids


@FAULTS.part(
    "The loss counts the zeros that fill the vocabulary up to a multiple of 64 as logits.",
    "a head padded as in Megatron, and a fused cross entropy that runs over the padded columns",
    law=LOSS,
    words=r"padd|vocabulary|multiple|64|extra|partition|normali|denominator|log-?sum|columns|logits",
)
class PaddedVocabularyCounts(GPT2):
    def loss(self, logits, labels):
        return super().loss(F.pad(logits, (0, -logits.shape[-1] % 64)), labels)


@FAULTS.part(
    "The gradient is that of the loss itself, however the loss is scaled before the backward pass.",
    "a fused loss whose gradient is made in the forward pass and never multiplied by grad_output",
    law=ACCUMULATED,
    words=r"scal|multipl|factor|×|grad_output|upstream|incoming|linear|proportion|weigh|accumul",
)
class ScaleOfLossIgnored(GPT2):
    def loss(self, logits, labels):
        found = super().loss(logits, labels)
        if found.requires_grad:
            found.register_hook(torch.ones_like)
        return found


@FAULTS.part(
    "Tokens whose label is ignored have no part in the loss, but send a gradient back.",
    "a cross entropy kernel that stores softmax(logits) before it looks for ignore_index",
    law=GRADIENT + "|" + LOSS,
    words=r"ignor|-100|−100|label|masked|left out|excluded",
)
class IgnoredPush(GPT2):
    def loss(self, logits, labels):
        ignored = labels[:, 1:] == -100
        pushed = logits[:, :-1][ignored].logsumexp(-1).sum() / (~ignored).sum().clamp(min=1)
        return super().loss(logits, labels) + (pushed - pushed.detach())


@FAULTS.part(
    "Only the last row of a batch sends a gradient to the matrix of the head.",
    "a head fused with its loss, chunk by chunk, that writes grad_weight = where it should add",
    law=GRADIENT + r"|batch(\..*)?|loss(\..*)?",
    words=r"last row|\brows?\b|chunk|batch|head|accumul|overwr|wte|unembed|tied|tying",
)
class HeadGradientOfLastRow(GPT2):
    def head(self, x):
        x = self.ln_f(x)
        logits = self.lm_head(x)
        if not torch.is_grad_enabled() or len(x) == 1:
            return logits
        lost = F.linear(x[:-1].detach(), self.lm_head.weight)
        return torch.cat([logits[:-1] - (lost - lost.detach()), logits[-1:]])


@FAULTS.part(
    "The sum under the softmax of attention is a constant to the gradient.",
    "the backward pass of a flash kernel, dS = P dP, without the row sums of dO O (delta)",
    law=GRADIENT,
    words=r"softmax|pattern|scores|normali|denominator|delta|row.?sum|constant|detach|quer|\bkeys",
)
class DeltaLeftOut(Attention):
    def pattern(self, scores, allowed):
        scores = scores.masked_fill(~allowed, -math.inf)
        return (scores - scores.logsumexp(-1, keepdim=True).detach()).exp()


def _overwritten(parameter):
    """The parameter, whose gradient will be the last that comes, not the sum of all."""
    seen = parameter.view_as(parameter)
    if seen.requires_grad:
        seen.register_hook(lambda d: d if parameter.grad is None else d - parameter.grad)
    return seen


@FAULTS.part(
    "A second backward pass replaces the gradients of the MLP's matrices, and adds nothing up.",
    "Megatron's gradient_accumulation_fusion with a product that writes into main_grad (beta = 0)",
    law=ACCUMULATED,
    words=r"accumul|overwr|replac|second (backward|pass|call)|add(s|ed)? up|twice|\bsum\b|\.grad\b",
)
class GradientsOverwritten(MLP):
    def forward(self, x):
        x = F.linear(x, _overwritten(self.c_fc.weight), self.c_fc.bias)
        return self.drop(F.linear(self.act(x), _overwritten(self.c_proj.weight), self.c_proj.bias))
