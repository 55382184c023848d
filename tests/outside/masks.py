"""Mistakes with padding, masks and the rows of a batch."""

import torch

from outside.gpt2 import GPT2, MLP, Attention, Norm
from outside.record import Table

FAULTS = Table()
MASKS = r"(padding|positions|masks?|cache|loss)(\..*)?"
BATCH = r"batch(\..*)?"


@FAULTS.part(
    "0 and 1 of the mask are added to the scores.",
    "a mask that should have been (1 − m) · −∞",
    law=MASKS,
    words=r"added|0.*1|raw|padding|mask|seen",
)
class MaskAdded(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        for block in self.h:
            block.attn.added = mask
        try:
            return super().run(ids, mask, positions, past)
        finally:
            for block in self.h:
                block.attn.added = None

    def visible(self, mask):
        return torch.ones_like(mask).bool()[:, None, :]


class _Adding(Attention):
    added = None

    def scores(self, q, k):
        found = super().scores(q, k)
        return found if self.added is None else found + self.added[:, None, None, :]


_build = MaskAdded.__init__


def _with_adding(self, config):
    _build(self, config)
    for block in self.h:
        block.attn.__class__ = _Adding


MaskAdded.__init__ = _with_adding


@FAULTS.part(
    "Padding is hidden as a target and seen as a source.",
    "mask[:, None, :, None] for mask[:, None, None, :]",
    law=MASKS,
    words=r"padding|source|key|seen|target|quer|mask",
)
class MaskOfTargets(GPT2):
    def allowed(self, ids, mask, start):
        found = super().allowed(ids, None, start)
        if mask is None:
            return found
        itself = torch.eye(found.shape[-1], dtype=torch.bool)[start:]
        return found & mask.bool()[:, None, -ids.shape[1] :, None] | itself


@FAULTS.part(
    "With a mask, the first token has position 1.",
    "cumsum(mask) without − 1",
    law=MASKS,
    words=r"position",
)
class MaskedFromOne(GPT2):
    def positions(self, ids, mask, start):
        found = super().positions(ids, mask, start)
        return (
            found
            if mask is None
            else (found + mask[:, -ids.shape[1] :]).clamp(max=self.config.n_ctx - 1)
        )


@FAULTS.part(
    "The mask of the first row is used for all.",
    "mask[0] where a mask for each row is needed",
    law=MASKS,
    words=r"row|first|mask|batch",
)
class MaskOfFirstRow(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        return super().run(ids, None if mask is None else mask[:1].expand_as(mask), positions, past)


@FAULTS.part(
    "The mask is dropped where the first row has no padding.",
    "if mask[0].all(): mask = None",
    law=MASKS,
    words=r"row|first|drop|ignor|without|mask|padding",
)
class MaskDropped(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if mask is not None and mask[0].bool().all():
            mask = None
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Masks of rows and heads are mixed up.",
    "repeat(heads) for repeat_interleave(heads), as for nn.MultiheadAttention",
    law=MASKS,
    words=r"row|head|mix|order|mask|batch",
)
class MaskRepeated(Attention):
    def pattern(self, scores, allowed):
        if allowed.shape[0] > 1:
            rows, heads = scores.shape[:2]
            wrong = allowed[:, 0].repeat(heads, 1, 1)
            allowed = wrong.unflatten(0, (rows, heads)) | torch.eye(
                *scores.shape[-2:], dtype=torch.bool
            )
        return super().pattern(scores, allowed)


@FAULTS.part(
    "The embeddings of padding are zeroed, and padding is seen.",
    "x * mask.unsqueeze(-1) taken for attention's mask",
    law=MASKS,
    words=r"padding|zero|embed|seen|mask|source",
)
class PaddingZeroed(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        self._mask = None if mask is None else mask[:, -ids.shape[1] :]
        return super().run(ids, mask, positions, past)

    def embed(self, ids, positions):
        x = super().embed(ids, positions)
        return x if self._mask is None else x * self._mask[..., None]

    def visible(self, mask):
        return torch.ones_like(mask).bool()[:, None, :]


@FAULTS.part(
    "A mask of integers is inverted bit by bit, and hides nothing.",
    "~mask on int64: ~1 is −2, which is true",
    law=MASKS,
    words=r"mask|padding|integer|invert|bit|polarity|seen",
)
class InvertedBitwise(GPT2):
    def visible(self, mask):
        return (~(~mask).bool() if mask.dtype == torch.bool else (~mask).bool())[:, None, :]


@FAULTS.part(
    "The mask hides what it should show.",
    "key_padding_mask of nn.MultiheadAttention: True means padding",
    law=MASKS,
    words=r"invert|polarity|opposite|hid|padding|mask|true",
)
class MaskInverted(GPT2):
    def visible(self, mask):
        return ~mask.bool()[:, None, :]


@FAULTS.part(
    "A masked row of padding sees all padding, and real tokens see the last padding too.",
    "a mask that begins one column too late",
    law=MASKS,
    words=r"padding|one|column|off|late|shift|seen|mask",
)
class MaskOneLate(GPT2):
    def visible(self, mask):
        seen = mask.bool()
        return (seen | seen.roll(-1, 1))[:, None, :]


@FAULTS.part(
    "Padding is found by its id, and the id is 0.",
    "attention_mask = input_ids != pad_token_id inside of the model",
    law=r"logits|activations\..*|causality\..*|padding.*|masks?.*",
    words=r"token 0|\bid\b|padding|mask|zero|0",
)
class PaddingById(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if mask is None and past is None and ids.shape[1] > 1:
            mask = (ids != 0).long()
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Tokens of all rows see each other.",
    "nn.MultiheadAttention(batch_first=False) fed with [B, T, D]",
    law=BATCH + r"|causality\..*",
    words=r"row|batch|axis|dimension|sequence",
)
class RowsForTokens(Attention):
    def forward(self, x, allowed, past=None):
        if past is None and len(x) > 1:
            turned = x.transpose(0, 1)
            rows = torch.ones(len(x), len(x), dtype=torch.bool).tril()[None, None]
            y, _ = super().forward(turned, rows)
            _, k, v = self.split(self.c_attn(x))
            return y.transpose(0, 1), self.kept(k, v)
        return super().forward(x, allowed, past)


@FAULTS.part(
    "Norms take the mean of the variance over the rows of a batch.",
    "BatchNorm-like statistics, or a reduction over the wrong axis",
    law=BATCH + r"|activations\..*",
    words=r"row|batch|norm|axis|varianc",
)
class VarianceOfBatch(Norm):
    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean((0, -1), keepdim=True)
        return self.weight * centred / (variance + 1e-5).sqrt() + self.bias


@FAULTS.part(
    "In batches of more than 16 rows, the rows beyond have the logits of the first ones.",
    "a grid of blocks that wraps around",
    law=BATCH,
    words=r"row|batch|16",
)
class RowsWrap(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if past is None and len(ids) > 16:
            ids = ids[torch.arange(len(ids)) % 16]
        return super().run(ids, mask, positions, past)


@FAULTS.part(
    "Activations of a call share one scale of eight bits.",
    "dynamic quantisation by tensor",
    law=BATCH + r"|causality\..*|activations\..*",
    words=r"8.bit|int8|grid|quanti|eight|scale",
)
class OneScaleForAll(MLP):
    def act(self, x):
        found = super().act(x)
        scale = found.abs().max() / 127
        return (found / scale).round() * scale


@FAULTS.part(
    "Rows come back in the order of their first token.",
    "a batch that was sorted for packing, and never put back",
    law=BATCH + r"|logits|activations\..*",
    words=r"row|order|sort|mixed|permut|batch",
)
class RowsSorted(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        if past is None and len(ids) > 1 and mask is None:
            ids = ids[ids[:, 0].argsort()]
        return super().run(ids, mask, positions, past)
