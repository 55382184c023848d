"""Mistakes in norms, sums and the MLP."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from outside.gpt2 import GPT2, MLP, Block, Norm
from outside.record import Table

FAULTS = Table()
LN = r"h\.0\.ln_1"


@FAULTS.part(
    "ε is 1e-12.",
    "BERT's layer_norm_eps",
    site=LN,
    words=r"eps|ε",
)
class EpsOfBert(Norm):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-12)


@FAULTS.part(
    "The deviation is that of a sample, and ε is added to it.",
    "The Annotated Transformer's LayerNorm: x.std() + eps",
    site=LN,
    words=r"n ?[-−] ?1|bessel|unbiased|sample|deviation|std",
)
class DeviationOfSample(Norm):
    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / (x.std(-1, keepdim=True) + 1e-5) + self.bias


@FAULTS.part(
    "The mean is not subtracted.",
    "RMSNorm",
    site=LN,
    words=r"mean|rms|centr",
)
class MeanKept(Norm):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) + self.bias


@FAULTS.part(
    "Mean and variance are taken over all tokens of a sequence.",
    "layer_norm(x, x.shape[1:]), or GroupNorm(1)",
    site=LN,
    words=r"token|sequence|position|over|axis|whole",
)
class NormOverTokens(Norm):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-2:], eps=1e-5) * self.weight + self.bias


@FAULTS.part(
    "The gain is one more than it should be.",
    "Gemma's (1 + weight)",
    site=LN,
    words=r"1 ?\+|one more|\+ ?1|plus one|gain",
)
class GainPlusOne(Norm):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight + 1, self.bias, 1e-5)


@FAULTS.part(
    "Norms have no bias.",
    "LayerNorm(bias=False) of nanoGPT's configuration",
    site=LN,
    words=r"bias|shift|b\b",
)
class NormsWithoutBias(Norm):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, None, 1e-5)


@FAULTS.part(
    "Norms compute in bfloat16.",
    "a model cast to bfloat16 whose norms should have stayed in float32",
    site=LN + r"|",
    law=r"activations\..*|architecture|precision|logits|gradient",
    words=r"bfloat16|half|precision|rounded",
)
class NormsInBfloat16(Norm):
    def forward(self, x):
        return super().forward(x.bfloat16().to(x.dtype)).bfloat16().to(x.dtype)


@FAULTS.part(
    "The MLP reads what attention read.",
    "the parallel blocks of GPT-J, PaLM and Falcon",
    site=r"h\.0\.(ln_2|mlp\.pre|resid_mid|.*)",
    words=r"parallel|input of the block|before attention|same (input|as)|resid_mid|ln_1",
)
class ParallelBlock(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        return x + attended + self.mlp(self.ln_2(x)), kept


@FAULTS.part(
    "Norms follow the sums.",
    "post-LN, as in GPT and BERT",
    site=r"h\.0\..*",
    words=r"post|after|follow|norm",
)
class NormsAfterwards(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(x, allowed, past)
        x = self.ln_1(x + attended)
        return self.ln_2(x + self.mlp(x)), kept


@FAULTS.part(
    "The first sum takes the normalised input.",
    "x = ln_1(x); x = x + attn(x)",
    site=r"h\.0\.resid_mid",
    words=r"norm|ln_1|residual|sum",
)
class SumOfNormed(Block):
    def forward(self, x, allowed, past=None):
        x = self.ln_1(x)
        attended, kept = self.attn(x, allowed, past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), kept


@FAULTS.part(
    "What each branch adds is divided by the root of twice the number of layers.",
    "GPT-2's scaling of initial weights, applied in the forward pass",
    site=r"h\.0\.resid_mid|h\.0\.attn\.out",
    words=r"scal|×|factor|divid|coefficient|root|·",
)
class BranchesScaled(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x + attended / math.sqrt(6)
        return x + self.mlp(self.ln_2(x)) / math.sqrt(6), kept


@FAULTS.part(
    "The stream itself is multiplied by 0.9 at every sum.",
    "DeepNorm's α, or a decay that was left from an experiment",
    site=r"h\.0\.resid_mid",
    words=r"0\.9|scal|×|factor|coefficient|·|decay",
)
class StreamDecays(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = 0.9 * x + attended
        return 0.9 * x + self.mlp(self.ln_2(x)), kept


@FAULTS.part(
    "The last block does not add the MLP to what came in.",
    "a forgotten residual in an unrolled last layer",
    site=r"h\.2\.resid_post",
    words=r"residual|sum|missing|without|left out|coefficient|0 ?·|not added|skip",
)
class LastSumMissing(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x + attended
        out = self.mlp(self.ln_2(x))
        return out if self.layer == 2 else x + out, kept


@FAULTS.part(
    "The first norm of a block is used twice, the second never.",
    "self.ln_1 copied and pasted",
    site=r"h\.0\.(ln_2|mlp\.pre)",
    words=r"ln_1|first norm|norm",
)
class FirstNormTwice(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x + attended
        return x + self.mlp(self.ln_1(x)), kept


@FAULTS.part(
    "The attention of a block is added a second time after the MLP.",
    "a skip of a skip",
    site=r"h\.0\.resid_post",
    words=r"twice|again|attention|attn|coefficient|sum|2 ?·|second",
)
class AttentionAddedTwice(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x + attended
        return x + attended + self.mlp(self.ln_2(x)), kept


@FAULTS.part(
    "The stream is kept in bfloat16 between blocks.",
    "a buffer of activations that is stored in half precision",
    site=r"h\.\d\.resid_post|h\.\d\.resid_mid|",
    law=r"activations\..*|architecture|precision|logits|gradient",
    words=r"bfloat16|half|precision|rounded",
)
class StreamInBfloat16(Block):
    def forward(self, x, allowed, past=None):
        x, kept = super().forward(x, allowed, past)
        return x.bfloat16().to(x.dtype), kept


@FAULTS.part(
    "Blocks are run from the last to the first.",
    "reversed(layers), as in a decoder that unwinds an encoder",
    site=r"h\.\d\..*",
    words=r"order|revers|layer|block|permut",
)
class BlocksReversed(GPT2):
    def blocks(self, x, allowed, past):
        kept = {}
        for layer in reversed(range(len(self.h))):
            x, kept[layer] = self.h[layer](x, allowed, None if past is None else past[layer])
        return x, [kept[layer] for layer in range(len(self.h))]


@FAULTS.part(
    "The last block is left out.",
    "range(n_layer - 1), or hidden_states[-2]",
    site=r"ln_f|h\.2\..*|logits|",
    law=r"activations\..*|weights\..*|logits|lens|gradient",
    words=r"(block|layer).*(left out|missing|skip|not run|unused)"
    r"|(skip|without|left out|missing).*(block|layer)",
)
class LastBlockLeftOut(GPT2):
    def blocks(self, x, allowed, past):
        *blocks, _last = self.h
        kept = []
        for layer, block in enumerate(blocks):
            x, new = block(x, allowed, None if past is None else past[layer])
            kept.append(new)
        return x, [*kept, kept[-1]]


@FAULTS.part(
    "The first block is run twice.",
    "a prologue that was left in front of the loop",
    site=r"h\.\d\..*",
    words=r"twice|again|repeat|layer|block",
)
class FirstBlockTwice(GPT2):
    def blocks(self, x, allowed, past):
        x, _ = self.h[0](x, allowed, None if past is None else past[0])
        return super().blocks(x, allowed, past)


@FAULTS.part(
    "The activation is SiLU.",
    "hidden_act of Llama",
    site=r"h\.0\.mlp\.act",
    words=r"silu|swish|sigmoid",
)
class ActivationSilu(MLP):
    def act(self, x):
        return F.silu(x)


@FAULTS.part(
    "The activation is the square of ReLU.",
    "Primer, Nemotron and nanoGPT speed runs",
    site=r"h\.0\.mlp\.act",
    words=r"relu|square",
)
class ActivationSquaredRelu(MLP):
    def act(self, x):
        return F.relu(x).square()


@FAULTS.part(
    "The activation is ELU.",
    "a menu of activations whose default is another",
    site=r"h\.0\.mlp\.act",
    words=r"\belu\b|exponential|exp",
)
class ActivationElu(MLP):
    def act(self, x):
        return F.elu(x)


@FAULTS.part(
    "The cubic coefficient of GELU is 0.44715.",
    "a zero that was lost from 0.044715",
    site=r"h\.0\.mlp\.act",
    words=r"0\.44715|coefficient|constant|cub|gelu",
)
class GeluLostZero(MLP):
    def act(self, x):
        inner = math.sqrt(2 / math.pi) * (x + 0.44715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))


@FAULTS.part(
    "GELU has the root of π / 2 for that of 2 / π.",
    "a fraction upside down",
    site=r"h\.0\.mlp\.act",
    words=r"π|pi\b|sqrt|root|constant|1\.25|gelu",
)
class GeluUpsideDown(MLP):
    def act(self, x):
        inner = math.sqrt(math.pi / 2) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))


@FAULTS.part(
    "GELU's tanh is a rational approximation.",
    "a kernel without tanh: x (27 + x²) / (27 + 9 x²)",
    site=r"h\.0\.mlp\.act",
    words=r"tanh|rational|pad|approx|gelu",
)
class GeluRational(MLP):
    def act(self, x):
        z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + (z * (27 + z * z) / (27 + 9 * z * z)).clamp(-1, 1))


@FAULTS.part(
    "The bias of c_fc is added after the activation.",
    "a fused kernel whose epilogue has the two in the wrong order",
    site=r"h\.0\.mlp\.(pre|act)",
    words=r"bias",
)
class BiasAfterActivation(MLP):
    def forward(self, x):
        return self.c_proj(self.act(F.linear(x, self.c_fc.weight)) + self.c_fc.bias)


@FAULTS.part(
    "The last quarter of the neurons is dead.",
    "an intermediate size of 3 D, or a kernel that misses its last tile",
    site=r"h\.0\.mlp\.(act|out|pre)",
    words=r"neuron|channel|zero|last|quarter|tile|missing|dead",
)
class NeuronsDead(MLP):
    def act(self, x):
        found = super().act(x)
        keep = torch.arange(x.shape[-1]) < x.shape[-1] * 3 // 4
        return found * keep


@FAULTS.part(
    "Activations are cut off at 0.3.",
    "ReLU6-like clipping for quantisation (gelu_10)",
    site=r"h\.0\.mlp\.act",
    words=r"clip|clamp|cut|cap|saturat|limit",
)
class ActivationsClipped(MLP):
    def act(self, x):
        return super().act(x).clamp(max=0.3)


@FAULTS.part(
    "Activations of each token are rounded to eight bits.",
    "W8A8 quantisation with a scale for each token",
    site=r"h\.0\.mlp\.(act|out)",
    words=r"8.bit|int8|grid|quanti|eight",
)
class ActivationsInEightBits(MLP):
    def act(self, x):
        found = super().act(x)
        scale = found.abs().amax(-1, keepdim=True) / 127
        return (found / scale).round() * scale


@FAULTS.part(
    "The MLP of a token reads the token before.",
    "RWKV's token shift, or an off-by-one between two buffers",
    site=r"h\.0\.(ln_2|mlp\..*)",
    words=r"token|position|shift|before|previous|neighbour|roll",
)
class TokenShift(MLP):
    def forward(self, x):
        return super().forward(torch.cat([x[:, :1], x[:, :-1]], 1))


@FAULTS.part(
    "The output of the MLP passes the activation as well.",
    "Sequential(Linear, GELU, Linear, GELU)",
    site=r"h\.0\.mlp\.out|h\.0\.resid_post",
    words=r"activation|gelu|twice|again|second",
)
class ActivatedTwice(MLP):
    def forward(self, x):
        return self.act(super().forward(x))


@FAULTS.after(
    "The last norm is run twice.",
    "a body that ends in ln_f, and a head that begins with it",
    site=r"logits|ln_f",
    words=r"twice|again|second|ln_f|norm",
)
def last_norm_twice(model):
    model.ln_f = nn.Sequential(model.ln_f, model.ln_f)
