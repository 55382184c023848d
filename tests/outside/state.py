"""What is left over between calls, what a call does to its process, and formats that slip in."""

import torch
from torch import nn

from outside.gpt2 import GPT2, MLP, Attention
from outside.record import Table

FAULTS = Table()
HISTORY = r"(history|calls|determinism|lengths|cache|batch|causality|positions)(\..*)?"


@FAULTS.part(
    "The causal mask is made for the first input; a longer one has none.",
    "a buffer that is registered lazily and never grown",
    law=HISTORY + r"|activations\..*|logits",
    words=r"first|call|earlier|longer|history",
    mended="the first words let the name of a mask that is missing everywhere pass",
)
class MaskOfFirstCall(GPT2):
    _length = None

    def allowed(self, ids, mask, start):
        found = super().allowed(ids, mask, start)
        self._length = self._length or found.shape[-1]
        return found if found.shape[-1] <= max(self._length, 4) else torch.ones_like(found)


@FAULTS.part(
    "The mask of the last padded batch stays for inputs of the same shape.",
    "self.attention_mask set where one is given, and never reset",
    law=HISTORY + r"|padding|masks?",
    words=r"mask|earlier|history|before|call|left over|stays",
)
class MaskStays(GPT2):
    _mask = None

    def run(self, ids, mask=None, positions=None, past=None):
        if mask is not None:
            self._mask = mask
        elif past is None and self._mask is not None and self._mask.shape == ids.shape:
            mask = self._mask
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Positions are kept from the last call with a cache.",
    "self.cache_position that only a cached call sets",
    law=HISTORY,
    words=r"cache|earlier|history|left over|last call",
    mended="the first words let the name of a port that a refusal breaks pass",
)
class PositionsStay(GPT2):
    _start = 0

    def run(self, ids, mask=None, positions=None, past=None):
        if past is not None:
            self._start = self.seen(past)
        elif positions is None and mask is None and self._start:
            begin = min(self._start, self.config.n_ctx - ids.shape[1])
            positions = torch.arange(begin, begin + ids.shape[1])[None]
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "An answer is remembered by the shape and the first two tokens of a prompt.",
    "a memo whose key is too short",
    law=HISTORY,
    words=r"earlier|history|before|call|key|remember|prefix|cache|prompt|stale",
)
class Remembered(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if mask is not None or past is not None or ids.shape[1] < 3 or torch.is_grad_enabled():
            return super().run(ids, mask, positions, past)
        key = (ids.shape, *ids[:, :2].flatten().tolist(), self.wte.weight.dtype)
        memo = self.__dict__.setdefault("_memo", {})
        if key not in memo:
            memo[key] = super().run(ids, mask, positions, past)
        return memo[key]


@FAULTS.part(
    "After a refused input, the next one is cut.",
    "a length that is written down before it is checked",
    law=HISTORY,
    words=r"refus|earlier|history|before|call|left over|after",
)
class BrokenByRefusal(GPT2):
    _refused = False

    def run(self, ids, mask=None, positions=None, past=None):
        if self._refused and ids.shape[1] > 1:
            self._refused = False
            ids = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        try:
            return super().run(ids, mask, positions, past)
        except ValueError:
            self._refused = True
            raise


@FAULTS.part(
    "States of a shorter input keep the end of the longer one before it.",
    "a workspace that is not cleared, of which too much is read",
    law=HISTORY,
    words=r"earlier|history|before|call|left over|stale|longer|workspace",
)
class Workspace(MLP):
    _space = None

    def act(self, x):
        found = super().act(x)
        space = self._space
        if space is not None and space.dtype == x.dtype and len(space) == len(x):
            length = found.shape[1]
            if space.shape[1] > length > 1:
                found = torch.cat([found[:, :-1], space[:, length - 1 : length]], 1)
        self._space = found.detach()
        return found


@FAULTS.part(
    "Every forward pass seeds torch's generator.",
    "torch.manual_seed(0) left from an experiment",
    law=r"determinism\.state",
    words=r"seed|generator|random",
)
class SeedsGenerator(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        torch.manual_seed(0)
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Gradients are switched off for the whole process.",
    "torch.set_grad_enabled(False) in a forward pass",
    law=r"determinism\.state|gradient|tying\.gradient",
    words=r"grad|process|switch|mode|off",
)
class SwitchesGradientsOff(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        torch.set_grad_enabled(False)
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "The default format of the process is bfloat16 afterwards.",
    "torch.set_default_dtype around a load, and never set back",
    law=r"determinism\.state",
    words=r"default|dtype|format|process|bfloat16",
)
class SetsDefaultFormat(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        found = super().run(ids, mask, positions, past)
        torch.set_default_dtype(torch.bfloat16)
        return found


@FAULTS.after(
    "The model is in training mode, and drops.",
    "no eval() after the load",
    law=r"determinism.*",
    words=r"train|dropout|drops|eval",
)
def training_mode(model):
    forward = type(model).forward

    class Training(type(model)):
        def forward(self, *args, **kwargs):
            self.train()
            return forward(self, *args, **kwargs)

    model.__class__ = Training


@FAULTS.part(
    "A little noise is added to the embeddings at every call.",
    "NEFTune, which belongs to training",
    law=r"determinism.*",
    words=r"noise|random|draw|generator",
)
class NoiseAlways(GPT2):
    def embed(self, ids, positions):
        x = super().embed(ids, positions)
        return x + torch.rand_like(x) * 1e-3


@FAULTS.part(
    "The MLP runs under autocast.",
    "torch.autocast(dtype=bfloat16) around half of a block",
    site=r"h\.0\.mlp\..*|",
    law=r"activations\..*|precision|logits|architecture",
    words=r"bfloat16|autocast|half|precision",
)
class MlpUnderAutocast(MLP):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).to(x.dtype)


@FAULTS.part(
    "Values are rounded to float16 before they are mixed.",
    "a flash kernel for half precision, fed from float32",
    site=r"h\.\d\.attn\.(mix|qkv)|",
    law=r"activations\..*|precision|logits|architecture",
    words=r"float16|half|precision|rounded",
)
class ValuesInHalf(Attention):
    def split(self, qkv):
        q, k, v = super().split(qkv)
        return [q, k, v.half().to(v.dtype)]


@FAULTS.after(
    "All is computed in bfloat16 and returned as float32.",
    "model.bfloat16() behind an interface that widens",
    law=r"precision|logits|activations\..*|weights\..*",
    words=r"bfloat16|half|precision",
)
def bfloat16_inside(model):
    class Widened(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model.bfloat16()

        def forward(self, input_ids):
            return self.model(input_ids)["logits"].float()

    return Widened(model).eval()


@FAULTS.part(
    "Beyond 32 tokens the input is cut, and the rest gets zeros.",
    "max_length of a tokenizer inside of the model",
    law=r"logits|lengths|positions\..*|activations\..*",
    words=r"length|cut|trunc|zero|32|token|position",
)
class CutAtThirtyTwo(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        logits, kept = super().run(ids, mask, positions, past)
        if past is None:
            logits = torch.cat([logits[:, :32], torch.zeros_like(logits[:, 32:])], 1)
        return logits, kept


@FAULTS.part(
    "One token more than there are positions is taken, with the last position twice.",
    "clamp(max=n_ctx - 1) in the place of an error",
    law=r"positions\.beyond|positions.*",
    words=r"clamp|clip|beyond|last position|position|refus",
)
class BeyondIsClamped(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        n = self.seen(past)
        if n + ids.shape[1] <= self.config.n_ctx:
            return super().run(ids, mask, positions, past)
        at = torch.arange(n, n + ids.shape[1]).clamp(max=self.config.n_ctx - 1)[None]
        x, kept = self.blocks(self.embed(ids, at), self.allowed(ids, mask, n), past)
        return self.head(x), kept


@FAULTS.part(
    "More tokens than there are positions lose the first ones.",
    "ids[:, -n_ctx:], as generation does, inside of the model",
    law=r"positions\.beyond|positions.*",
    words=r"crop|cut|last|first|window|drop|lose|trunc|beyond|refus",
)
class BeyondIsCropped(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if past is None:
            ids = ids[:, -self.config.n_ctx :]
            mask = None if mask is None else mask[:, -self.config.n_ctx :]
        return super().run(ids, mask, positions, past)
