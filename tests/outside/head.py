"""Mistakes at the end: the head, the loss, and what flows back from it."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from outside.gpt2 import GPT2, MLP, Block
from outside.record import Table

FAULTS = Table()
LOSS = r"loss\..*"
GRADIENT = r"gradient|tying\.gradient|training.*|causality\.gradient|symmetry\.gradient"


@FAULTS.after(
    "The head has a bias.",
    "nn.Linear(bias=True), as in BERT and GPT-J",
    site=r"logits",
    words=r"bias|constant|added",
)
def head_with_bias(model):
    model.lm_head.bias = nn.Parameter(torch.linspace(-0.1, 0.1, model.lm_head.out_features))


@FAULTS.part(
    "The last state is divided by the root of the width before the head.",
    "T5's and μP's scaling of tied embeddings",
    site=r"logits|ln_f",
    words=r"scal|×|divid|root|width|factor|times",
    mended="what the head reads is taken for the last norm's output",
)
class HeadScaled(GPT2):
    def head(self, x):
        return self.lm_head(self.ln_f(x) * self.config.n_embd**-0.5)


@FAULTS.part(
    "Logits are divided by a temperature of 0.7.",
    "generation's default inside of the model",
    site=r"logits",
    words=r"temperature|scal|×|divid|factor|times|1\.43|0\.7",
)
class Temperature(GPT2):
    def head(self, x):
        return super().head(x) / 0.7


@FAULTS.part(
    "Logits are capped by 30 tanh(l / 30).",
    "Gemma 2's final_logit_softcapping",
    site=r"logits",
    words=r"cap|tanh|saturat",
)
class LogitsCapped(GPT2):
    def head(self, x):
        return 30 * torch.tanh(super().head(x) / 30)


@FAULTS.part(
    "The head reads the states of the last block as they are.",
    "a head put on the wrong output: ln_f left out",
    site=r"logits|ln_f",
    words=r"ln_f|last norm|norm",
)
class HeadWithoutNorm(GPT2):
    def head(self, x):
        return self.lm_head(x)


@FAULTS.part(
    "The logits of special ids are minus a thousand.",
    "a suppress_tokens that stayed in the forward pass",
    site=r"logits",
    words=r"token|suppress|mask|special|column|id\b|vocab|constant",
)
class SpecialSuppressed(GPT2):
    def head(self, x):
        logits = super().head(x).clone()
        logits[..., -1] = -1000.0
        return logits


@FAULTS.part(
    "The head computes in float16.",
    "logits in half precision, widened afterwards",
    site=r"logits|",
    law=r"activations\..*|logits|precision|architecture|gradient",
    words=r"float16|half|precision|rounded",
)
class HeadInHalf(GPT2):
    def head(self, x):
        return super().head(x).half().to(x.dtype)


@FAULTS.after(
    "The head is a copy of wte.",
    "two tensors in a file, loaded as two",
    law=r"tying\..*",
    words=r"copy|tied|tying|separate|own|untied",
)
def head_copied(model):
    model.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())


@FAULTS.part(
    "Labels are shifted by the caller's hand and once more by the loss.",
    "transformers' ForCausalLMLoss called with labels that are shifted (JetMoE, GIT)",
    law=LOSS,
    words=r"shift|two|twice|t ?\+ ?2",
)
class ShiftedTwice(GPT2):
    def loss(self, logits, labels):
        return F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())


@FAULTS.part(
    "The last token of a row predicts the first of the next row.",
    "rows flattened before the shift",
    law=LOSS,
    words=r"row|flat|across|bound|next sequence|batch|shift",
)
class ShiftedAcrossRows(GPT2):
    def loss(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1)[:-1], labels.flatten()[1:])


@FAULTS.part(
    "Labels that are 0 are ignored.",
    "pad_token_id = 0 replaced by −100 in the labels",
    law=LOSS,
    words=r"ignor|label|token 0|\b0\b|pad",
)
class ZeroIgnored(GPT2):
    def loss(self, logits, labels):
        return super().loss(logits, labels.masked_fill(labels == 0, -100))


@FAULTS.part(
    "Ignored labels count in the mean.",
    "reduction='sum' divided by the number of all labels",
    law=LOSS,
    words=r"ignor|mean|divid|count|denominator|number",
)
class IgnoredCounted(GPT2):
    def loss(self, logits, labels):
        wanted = labels[:, 1:].flatten()
        summed = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, reduction="sum")
        return summed / len(wanted)


@FAULTS.part(
    "The sum over a row is averaged over rows.",
    "reduction='sum' / batch_size (batchmean)",
    law=LOSS,
    words=r"sum|row|batch",
)
class SumOverRows(GPT2):
    def loss(self, logits, labels):
        wanted = labels[:, 1:].flatten()
        summed = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, reduction="sum")
        return summed / len(labels)


@FAULTS.part(
    "A ten thousandth of the squared log-partition is added.",
    "PaLM's z-loss, which belongs to training only",
    law=LOSS,
    words=r"z-?loss|partition|logsumexp|square|added|extra",
)
class ZLoss(GPT2):
    def loss(self, logits, labels):
        return super().loss(logits, labels) + 1e-4 * logits.logsumexp(-1).square().mean()


@FAULTS.part(
    "Only the last token of each row is predicted.",
    "a loss that was written for classification",
    law=LOSS,
    words=r"last|only|one token",
)
class LossOfLast(GPT2):
    def loss(self, logits, labels):
        return F.cross_entropy(logits[:, -2], labels[:, -1])


@FAULTS.part(
    "The loss is the focal one, with γ = 1.",
    "class imbalance, solved elsewhere",
    law=LOSS,
    words=r"focal|weight|1 ?[-−] ?p|confiden",
)
class FocalLoss(GPT2):
    def loss(self, logits, labels):
        nats = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        )
        kept = labels[:, 1:].flatten() != -100
        return ((1 - (-nats).exp()) * nats)[kept].mean()


@FAULTS.part(
    "The loss is half the cross entropy.",
    "a loss that was divided by the number of accumulation steps inside of the model",
    law=LOSS,
    words=r"half|0\.5|divid|scal|×|factor|times",
)
class LossHalved(GPT2):
    def loss(self, logits, labels):
        return super().loss(logits, labels) / 2


@FAULTS.part(
    "Every block is cut off from the gradient of the ones below it.",
    "x.detach() between blocks, left over from layer-wise training",
    law=GRADIENT,
    words=r"detach|block|cut|stop|gradient|branch",
)
class StreamDetached(Block):
    def forward(self, x, allowed, past=None):
        attended, kept = self.attn(self.ln_1(x), allowed, past)
        x = x.detach() + attended
        return x + self.mlp(self.ln_2(x)), kept


@FAULTS.part(
    "The lookup is made without gradient.",
    "torch.no_grad() around the embeddings",
    law=GRADIENT,
    words=r"lookup|embed|detach|block|no gradient|one side|cut",
)
class LookupWithoutGradient(GPT2):
    def embed(self, ids, positions):
        with torch.no_grad():
            return super().embed(ids, positions)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return d * (s + 1.702 * x * s * (1 - s))


@FAULTS.part(
    "GELU has the derivative of x σ(1.702 x).",
    "a hand-written backward pass of another approximation",
    law=GRADIENT,
    words=r"gelu|derivative|sigmoid|1\.702",
)
class BackwardOfAnotherGelu(MLP):
    def act(self, x):
        return _Straight.apply(x)


@FAULTS.after(
    "Gradients of each parameter are clipped at 1e-3.",
    "a hook for stability",
    law=GRADIENT,
    words=r"clip|clamp|cut|cap|limit",
)
def gradients_clipped(model):
    for parameter in model.parameters():
        parameter.register_hook(lambda d: d.clamp(-1e-3, 1e-3))


@FAULTS.part(
    "The states that go into the head have twice their gradient.",
    "a scale for mixed precision that is never taken back",
    law=GRADIENT,
    words=r"twice|2|scal|×|factor|double",
)
class GradientDoubled(GPT2):
    def head(self, x):
        return super().head(2 * x - x.detach())


@FAULTS.part(
    "In training, the loss is smoothed.",
    "label_smoothing that is switched by self.training",
    law=r"training.*",
    words=r"train|smooth",
)
class SmoothedInTraining(GPT2):
    def loss(self, logits, labels):
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            label_smoothing=0.1 if self.training else 0.0,
        )


@FAULTS.part(
    "In training, the last block is passed over.",
    "layer drop (stochastic depth) with a fixed choice",
    law=r"training.*",
    words=r"train|layer|block",
)
class LayerDropped(GPT2):
    def blocks(self, x, allowed, past):
        if not self.training:
            return super().blocks(x, allowed, past)
        for block in list(self.h)[:-1]:
            x, _ = block(x, allowed, None)
        return x, None


@FAULTS.part(
    "With gradient checkpointing, blocks get states in bfloat16.",
    "an autocast that the recomputation does not see",
    law=r"training.*",
    words=r"checkpoint|bfloat16|recomput|half",
)
class CheckpointedInBfloat16(GPT2):
    def blocks(self, x, allowed, past):
        if self.gradient_checkpointing and self.training:
            x = x.bfloat16().to(x.dtype)
        return super().blocks(x, allowed, past)


@FAULTS.part(
    "With gradient checkpointing, nothing flows back into the embeddings.",
    "use_reentrant=True with inputs that need no gradient",
    law=r"training.*",
    words=r"checkpoint|detach|embed|cut|recomput|gradient",
)
class CheckpointedDetached(GPT2):
    def blocks(self, x, allowed, past):
        if self.gradient_checkpointing and self.training:
            x = x.detach()
        return super().blocks(x, allowed, past)


@FAULTS.part(
    "A resized vocabulary has a head of its own.",
    "resize_token_embeddings that forgets tie_weights",
    law=r"resiz.*|tying.*|reload.*",
    words=r"resiz|tied|tying|copy|head",
)
class ResizedUntied(GPT2):
    def resize_token_embeddings(self, count):
        old = self.lm_head.weight.detach().clone()
        found = super().resize_token_embeddings(count)
        fresh = found.weight.detach().clone()
        rows = min(len(old), count)
        fresh[:rows] = old[:rows]
        self.lm_head.weight = nn.Parameter(fresh)
        return found


@FAULTS.part(
    "A resized vocabulary has new values in all of its rows.",
    "a new nn.Embedding into which nothing is copied",
    law=r"resiz.*|tying.*|reload.*",
    words=r"resiz|row|new|old|kept|lost",
)
class ResizedAfresh(GPT2):
    def resize_token_embeddings(self, count):
        self.wte = nn.Embedding(count, self.wte.weight.shape[1])
        nn.init.normal_(self.wte.weight, std=1 / math.sqrt(count))
        self.lm_head = nn.Linear(self.wte.weight.shape[1], count, bias=False)
        self.tie_weights()
        return self.wte
