"""Mistakes on the way from the file: layouts, what is lost, and what saves space."""

import numpy as np

from outside.record import Table

FAULTS = Table()
VALUES = r"weights\..*"


def columns(width, part):
    return slice(part * width, (part + 1) * width)


@FAULTS.weights(
    "The square matrix of attention's output is not transposed.",
    "Conv1D copied into Linear where no error of shapes says so",
    law=VALUES + r"|activations\..*",
    words=r"transpos",
    mended="a square matrix that lies the other way round is found as it is, and its product fails",
)
def square_not_transposed(w, config):
    for i in range(config.n_layer):
        w[f"h{i}/attn/c_proj/w"] = w[f"h{i}/attn/c_proj/w"].T.copy()


@FAULTS.weights(
    "c_fc is reshaped to the other shape in the place of being transposed.",
    "view(out, in) where .t() was meant",
    law=VALUES,
    words=r"reshap|memory order|contiguous|re-?read|strid|order|transpos",
)
def reshaped_not_transposed(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/mlp/c_fc/w"]
        w[f"h{i}/mlp/c_fc/w"] = value.reshape(value.shape[::-1]).T.copy()


@FAULTS.weights(
    "The last layer keeps the values that it was built with.",
    "load_state_dict(strict=False) and a prefix that does not match",
    law=VALUES,
    words=r"missing|not loaded|initial|random|none of|another|drawn|unrelated",
)
def last_layer_not_loaded(w, config):
    rng = np.random.default_rng(5)
    for name in list(w):
        if name.startswith(f"h{config.n_layer - 1}/") and name.endswith("/w"):
            w[name] = rng.normal(0, 0.02, w[name].shape).astype(np.float32)
        elif name.startswith(f"h{config.n_layer - 1}/"):
            w[name] = np.full_like(w[name], name.endswith("/g"))


@FAULTS.weights(
    "An adapter of rank two is merged into one matrix.",
    "LoRA weights that were merged, and never taken out again",
    law=VALUES,
    words=r"rank|adapter|lora",
)
def adapter_merged(w, config):
    rng = np.random.default_rng(7)
    value = w["h1/attn/c_attn/w"]
    down, up = rng.normal(size=(value.shape[0], 2)), rng.normal(size=(2, value.shape[1]))
    w["h1/attn/c_attn/w"] = (value + 0.01 * down @ up).astype(np.float32)


@FAULTS.weights(
    "One matrix is scaled by row.",
    "a normalisation (AWQ, SmoothQuant) whose inverse was not applied to the norm before",
    law=VALUES,
    words=r"scal|row|column|channel|vector|×|times",
)
def scaled_by_row(w, config):
    scale = np.linspace(0.5, 2, w["h1/mlp/c_fc/w"].shape[0], dtype=np.float32)
    w["h1/mlp/c_fc/w"] *= scale[:, None]


@FAULTS.weights(
    "c_fc is rounded to eight bits with a scale for each column.",
    "LLM.int8, torchao, GGUF Q8",
    law=VALUES,
    words=r"8.bit|int8|grid|quanti|eight",
)
def eight_bits(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/mlp/c_fc/w"]
        scale = np.abs(value).max(0, keepdims=True) / 127
        w[f"h{i}/mlp/c_fc/w"] = (np.round(value / scale) * scale).astype(np.float32)


@FAULTS.weights(
    "The last matrix of each MLP is rounded to four bits in groups of 32.",
    "GPTQ, AWQ, GGUF Q4_0",
    law=VALUES,
    words=r"4.bit|int4|grid|quanti|four|nf4",
)
def four_bits(w, config):
    for i in range(config.n_layer):
        value = w[f"h{i}/mlp/c_proj/w"]
        groups = value.reshape(-1, 32, value.shape[1])
        scale = np.abs(groups).max(1, keepdims=True) / 7
        rounded = np.round(groups / scale).clip(-8, 7) * scale
        w[f"h{i}/mlp/c_proj/w"] = rounded.reshape(value.shape).astype(np.float32)


@FAULTS.weights(
    "The weights went through bfloat16.",
    "a checkpoint saved in bfloat16 and loaded as float32",
    law=VALUES,
    words=r"bfloat16",
)
def through_bfloat16(w, config):
    for name, value in w.items():
        bits = value.view(np.uint32)
        w[name] = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


@FAULTS.weights(
    "Gains and biases went through float16; matrices did not.",
    "a mixed-precision export that keeps only matrices in float32",
    law=VALUES,
    words=r"float16|half",
)
def vectors_through_float16(w, config):
    for name, value in w.items():
        if value.ndim == 1:
            w[name] = value.astype(np.float16).astype(np.float32)


@FAULTS.weights(
    "Every row of wte holds the token before it.",
    "a beginning-of-sequence token that was put in front of the vocabulary",
    law=VALUES + r"|activations\..*",
    words=r"row|shift|offset|roll|one|moved|order|permut",
)
def vocabulary_shifted(w, config):
    w["wte"] = np.roll(w["wte"], 1, axis=0)


@FAULTS.weights(
    "Positions begin at the third row of wpe.",
    "OPT's and Fairseq's offset of 2",
    law=VALUES + r"|activations\..*",
    words=r"row|shift|offset|roll|two|2|moved|order|permut",
)
def positions_offset_by_two(w, config):
    w["wpe"] = np.roll(w["wpe"], -2, axis=0)


@FAULTS.weights(
    "Layers are loaded in reverse.",
    "a dictionary of layers sorted the wrong way",
    law=VALUES + r"|activations\..*|logits",
    words=r"layer|order|h\d.*h\d|permut|exchang|swap|revers|is (that )?of",
)
def layers_loaded_in_reverse(w, config):
    old = dict(w)
    for name, value in old.items():
        head, _, rest = name.partition("/")
        if head[1:].isdigit():
            w[f"h{config.n_layer - 1 - int(head[1:])}/{rest}"] = value


@FAULTS.weights(
    "All layers hold the weights of the first.",
    "[Block()] * n_layer, or ALBERT's sharing",
    law=VALUES + r"|activations\..*",
    words=r"layer|h0|same|equal|shared|first|repeated|is (that )?of",
)
def layers_shared(w, config):
    for name in list(w):
        head, _, rest = name.partition("/")
        if head[1:].isdigit():
            w[name] = w[f"h0/{rest}"]


@FAULTS.weights(
    "The two norms of a layer are exchanged.",
    "names in the order of another framework: norm1 for norm2",
    law=VALUES + r"|activations\..*",
    words=r"ln_1.*ln_2|ln_2.*ln_1|exchang|swap|norms",
)
def norms_exchanged(w, config):
    for i in range(config.n_layer):
        for part in "gb":
            a, b = f"h{i}/ln_1/{part}", f"h{i}/ln_2/{part}"
            w[a], w[b] = w[b], w[a]


@FAULTS.weights(
    "The biases of queries and values are exchanged.",
    "three biases concatenated as v, k, q",
    law=VALUES + r"|activations\..*",
    words=r"bias|c_attn/b|swap|exchang|order|q.*v|v.*q|parts",
)
def biases_of_q_and_v(w, config):
    width = config.n_embd
    for i in range(config.n_layer):
        bias = w[f"h{i}/attn/c_attn/b"].copy()
        w[f"h{i}/attn/c_attn/b"][columns(width, 0)] = bias[columns(width, 2)]
        w[f"h{i}/attn/c_attn/b"][columns(width, 2)] = bias[columns(width, 0)]


@FAULTS.weights(
    "The keys of one layer have the matrix of its queries.",
    "a loop that copies q twice",
    law=VALUES,
    words=r"q.*k|k.*q|equal|same|copy|twice|key|quer",
)
def keys_are_queries(w, config):
    width = config.n_embd
    w["h1/attn/c_attn/w"][:, columns(width, 1)] = w["h1/attn/c_attn/w"][:, columns(width, 0)]


@FAULTS.weights(
    "One head is pruned.",
    "prune_heads, or a shard that was filled with zeros",
    law=VALUES,
    words=r"zero|head|pruned|empty|row|missing|part",
)
def head_pruned(w, config):
    size = config.n_embd // config.n_head
    w["h1/attn/c_proj/w"][size : 2 * size] = 0


@FAULTS.weights(
    "The second half of a matrix is zero.",
    "a download that broke off, written into a file of the right size",
    law=VALUES,
    words=r"zero|truncat|half|row|missing|empty|part|broke",
)
def half_a_matrix(w, config):
    value = w["h2/mlp/c_fc/w"]
    value[len(value) // 2 :] = 0


@FAULTS.weights(
    "Weights are one per cent smaller.",
    "a step of weight decay, or an average with zeros (EMA without bias correction)",
    law=VALUES,
    words=r"scal|×|times|factor|0\.99|decay|smaller",
)
def one_per_cent_smaller(w, config):
    for name, value in w.items():
        if name.endswith("/w"):
            w[name] = value * np.float32(0.99)


@FAULTS.weights(
    "Some noise lies on one matrix.",
    "a fine-tuned file taken for the released one",
    law=VALUES,
    words=r"noise|fine-?tun|trained|random|another|drift|close",
)
def fine_tuned(w, config):
    rng = np.random.default_rng(3)
    value = w["h0/mlp/c_proj/w"]
    w["h0/mlp/c_proj/w"] = (value + rng.normal(0, 1e-3, value.shape)).astype(np.float32)


@FAULTS.weights(
    "One tensor is the negative of what it should be.",
    "a sign convention of another framework",
    law=VALUES,
    words=r"sign|negativ|−1|-1|minus",
)
def sign_turned(w, config):
    w["h1/mlp/c_proj/b"] = -w["h1/mlp/c_proj/b"]


@FAULTS.weights(
    "The bytes of one tensor are in the wrong order.",
    "big-endian files",
    law=VALUES + r"|logits",
    words=r"byte|endian",
)
def bytes_in_wrong_order(w, config):
    w["h1/ln_2/b"] = w["h1/ln_2/b"].byteswap()
    w["h1/ln_2/b"][~np.isfinite(w["h1/ln_2/b"])] = 0


@FAULTS.weights(
    "The heads of queries and keys are interleaved for another rotation; those of values are not.",
    "the permutation of convert_llama_weights applied to GPT-2 in q only",
    law=VALUES + r"|activations\..*",
    words=r"order|permut|interleav|channel|column",
)
def queries_permuted(w, config):
    width, heads = config.n_embd, config.n_head
    order = np.arange(width).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
    for i in range(config.n_layer):
        part = w[f"h{i}/attn/c_attn/w"][:, columns(width, 0)]
        w[f"h{i}/attn/c_attn/w"][:, columns(width, 0)] = part[:, order]
        bias = w[f"h{i}/attn/c_attn/b"][columns(width, 0)]
        w[f"h{i}/attn/c_attn/b"][columns(width, 0)] = bias[order]
