"""Mistakes in a port that shows nothing but logits (``picogpt.py``)."""

import math

import numpy as np

from outside import picogpt
from outside.record import Table

FAULTS = Table("logits-")
ANY = r"logits|logits\..*|causality\..*|batch.*|lengths|determinism|calls|history.*"


@FAULTS.numpy("norm")(
    "ε is added to the deviation.",
    "x.std() + eps",
    law=ANY,
    words=r"eps|ε|deviation|std",
)
def eps_outside(x, g, b, f):
    mean, deviation = x.mean(-1, keepdims=True), x.std(-1, keepdims=True)
    return g * (x - mean) / (deviation + np.float32(1e-5)) + b


@FAULTS.numpy("norm")(
    "The variance is that of a sample.",
    "torch's x.var(), which divides by n − 1",
    law=ANY,
    words=r"n ?[-−] ?1|bessel|unbiased|sample",
)
def variance_of_sample(x, g, b, f):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1)
    return g * (x - mean) / np.sqrt(variance + np.float32(1e-5)) + b


@FAULTS.numpy("embed")(
    "Positions begin at 1.",
    "a language that counts from one (Julia, Fortran, R)",
    law=ANY,
    words=r"position.*(1|one|offset|shift|used)",
)
def positions_from_one(tokens, w, f):
    rows = np.minimum(np.arange(len(tokens)) + 1, len(w["wpe"]) - 1)
    return w["wte"][tokens] + w["wpe"][rows]


@FAULTS.numpy("attend")(
    "Scores are not divided.",
    "a scale that was lost on the way",
    law=ANY,
    words=r"scal|divid|sqrt|×",
)
def scores_not_divided(q, k, v, f):
    return f["softmax"](q @ k.T + f["mask"](len(q), f), f) @ v


@FAULTS.numpy("attend")(
    "Scores are divided by the size of a head, not by its root.",
    "a square root that was lost (μP divides by d)",
    law=ANY,
    words=r"scal|divid|sqrt|root|×|size of a head|d_head",
)
def scores_by_head_size(q, k, v, f):
    scores = q @ k.T / np.float32(q.shape[-1]) + f["mask"](len(q), f)
    return f["softmax"](scores, f) @ v


@FAULTS.numpy("attend")(
    "Queries and keys are exchanged in the product.",
    "k @ q.T, whose softmax runs over the wrong side",
    law=ANY,
    words=r"q.*k|k.*q|quer.*key|key.*quer|exchang|swap|transpos",
)
def queries_for_keys(q, k, v, f):
    scores = k @ q.T / np.float32(math.sqrt(q.shape[-1])) + f["mask"](len(q), f)
    return f["softmax"](scores, f) @ v


@FAULTS.numpy("mask")(
    "There is no mask.",
    "an encoder's attention",
    law=r"causality\..*|logits",
    words=r"mask|causal|future",
)
def no_mask(length, f):
    return np.zeros((length, length), np.float32)


@FAULTS.numpy("mask")(
    "A token sees the last sixteen only.",
    "a window",
    law=ANY,
    words=r"window|last (16|sixteen)|local|recent|sees|t ?[-−] ?15",
)
def window_of_sixteen(length, f):
    far = np.tril(np.full((length, length), -np.inf, np.float32), -16)
    return picogpt.mask(length, f) + far


@FAULTS.numpy("mask")(
    "Tokens of one block of eight see each other, whatever their order.",
    "a block-wise mask that is filled by tile",
    law=r"causality\..*|logits",
    words=r"mask|causal|future|block|sees|tile",
)
def mask_by_tiles(length, f):
    tile = np.arange(length) // 8
    return np.where(tile[None] > tile[:, None], np.float32(-np.inf), np.float32(0))


@FAULTS.numpy("softmax")(
    "The softmax is computed in float16.",
    "a hand-written half-precision kernel",
    law=ANY,
    words=r"float16|half|precision",
)
def softmax_in_half(x, f):
    e = np.exp((x - x.max(-1, keepdims=True)).astype(np.float16))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


@FAULTS.numpy("gelu")(
    "GELU is the exact one.",
    "the default of most libraries",
    law=ANY,
    words=r"erf|exact",
)
def gelu_exact(x, f):
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return 0.5 * x * (1 + erf(x / np.float32(math.sqrt(2))))


@FAULTS.numpy("gelu")(
    "GELU is x times the logistic function of 1.702 x.",
    "CLIP's QuickGELU",
    law=ANY,
    words=r"quick|sigmoid|1\.702|logistic",
)
def gelu_quick(x, f):
    return x / (1 + np.exp(-np.float32(1.702) * x))


@FAULTS.numpy("gelu")(
    "GELU is ReLU.",
    "the first transformer",
    law=ANY,
    words=r"relu",
)
def gelu_relu(x, f):
    return np.maximum(x, 0)


@FAULTS.numpy("block")(
    "The MLP's sum takes the normalised state.",
    "x = norm(x) above a sum",
    law=ANY,
    words=r"norm|ln_2|residual|sum",
)
def sum_of_normed(x, w, layer, heads, f):
    h = f"h{layer}"
    normed = f["norm"](x, w[f"{h}/ln_1/g"], w[f"{h}/ln_1/b"], f)
    x = x + f["attention"](normed, w, f"{h}/attn", heads, f)
    x = f["norm"](x, w[f"{h}/ln_2/g"], w[f"{h}/ln_2/b"], f)
    return x + f["mlp"](x, w, f"{h}/mlp", f)


@FAULTS.numpy("block")(
    "The MLP reads what attention read.",
    "parallel blocks",
    law=ANY,
    words=r"parallel|input of the block|before attention|ln_2|same",
)
def parallel(x, w, layer, heads, f):
    h = f"h{layer}"
    normed = f["norm"](x, w[f"{h}/ln_1/g"], w[f"{h}/ln_1/b"], f)
    attended = f["attention"](normed, w, f"{h}/attn", heads, f)
    normed = f["norm"](x, w[f"{h}/ln_2/g"], w[f"{h}/ln_2/b"], f)
    return x + attended + f["mlp"](normed, w, f"{h}/mlp", f)


@FAULTS.numpy("attention")(
    "The heads are cut out of c_attn one by one: q, k, v of the first, then of the second.",
    "Megatron's order",
    law=ANY,
    words=r"head|interleav|group|order|neox|megatron",
)
def heads_one_by_one(x, w, scope, heads, f):
    qkv = f["linear"](x, w[f"{scope}/c_attn/w"], w[f"{scope}/c_attn/b"], f)
    triples = [np.split(part, 3, axis=-1) for part in np.split(qkv, heads, axis=-1)]
    mixed = np.hstack([f["attend"](q, k, v, f) for q, k, v in triples])
    return f["linear"](mixed, w[f"{scope}/c_proj/w"], w[f"{scope}/c_proj/b"], f)


@FAULTS.numpy("model")(
    "The last norm is left out.",
    "a model without ln_f",
    law=ANY,
    words=r"ln_f|last norm|final",
)
def without_last_norm(tokens, w, config, f):
    x = f["embed"](tokens, w, f)
    for layer in range(config.n_layer):
        x = f["block"](x, w, layer, config.n_head, f)
    return x @ w["wte"].T


@FAULTS.numpy("model")(
    "The last block is left out.",
    "range(n_layer - 1)",
    law=ANY,
    words=r"(block|layer).*(left out|missing|skip|not run|unused)"
    r"|(skip|without|left out|missing).*(block|layer)",
)
def without_last_block(tokens, w, config, f):
    x = f["embed"](tokens, w, f)
    for layer in range(config.n_layer - 1):
        x = f["block"](x, w, layer, config.n_head, f)
    return f["norm"](x, w["ln_f/g"], w["ln_f/b"], f) @ w["wte"].T


@FAULTS.numpy("linear")(
    "Inputs of every product are rounded to bfloat16.",
    "a matrix unit whose default precision is low (TPU, AMX)",
    law=ANY,
    words=r"bfloat16|half|precision",
)
def products_in_bfloat16(x, w, b, f):
    def rounded(value):
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)

    return rounded(x) @ rounded(w) + b


@FAULTS.numpy("batched")(
    "Every row has the logits of the first.",
    "a loop over rows that reads tokens[0]",
    law=r"batch.*|logits",
    words=r"row|batch|first",
)
def rows_of_the_first(tokens, w, config, f):
    return np.stack([f["model"](tokens[0], w, config, f) for _ in tokens])


@FAULTS.numpy("batched")(
    "Rows are one sequence: a row sees the rows before it.",
    "a flattened batch",
    law=r"batch.*|logits",
    words=r"row|batch|sequence",
)
def rows_in_one_sequence(tokens, w, config, f):
    if tokens.size > config.n_ctx:
        return picogpt.batched(tokens, w, config, f)
    return f["model"](tokens.ravel(), w, config, f).reshape(*tokens.shape, -1)


@FAULTS.numpy("batched")(
    "The logits of a token are those that belong to the one before.",
    "a server that returns the distribution which predicted each token (echo)",
    law=ANY,
    words=r"shift|one|before|position|previous|lag|roll",
)
def of_the_one_before(tokens, w, config, f):
    found = picogpt.batched(tokens, w, config, f)
    return np.concatenate([found[:, :1], found[:, :-1]], 1)
