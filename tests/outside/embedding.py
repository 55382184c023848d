"""Mistakes at the beginning: ids, the two tables, and which row of them is taken."""

import math

import torch
from torch import nn

from outside.gpt2 import GPT2
from outside.record import Table

FAULTS = Table()


@FAULTS.part(
    "Positions begin anew after half of the context.",
    "a rotating buffer of positions that was made for another context length",
    site="embed",
    words=r"position.*(wrap|repeat|modulo|again|anew|period|used|half)",
)
class PositionsRepeat(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, mask, start) % (self.config.n_ctx // 2)


@FAULTS.part(
    "Positions are counted from the end of the input.",
    "relative distances, or a reversed recurrent encoder, ported to a table",
    site="embed",
    words=r"position.*(revers|backward|from the end|the end|descend|used)",
)
class PositionsFromTheEnd(GPT2):
    def positions(self, ids, mask, start):
        found = super().positions(ids, mask, start)
        return found if start else found.flip(-1)


@FAULTS.part(
    "Positions go on from one row of a batch to the next.",
    "arange over the flattened batch, as in packed (varlen) attention without cu_seqlens",
    law=r"batch(\..*)?|activations\.local",
    site="embed",
    words=r"position.*(row|batch|flat|used|goes on|go on)|row.*position",
)
class PositionsOfFlatBatch(GPT2):
    def positions(self, ids, mask, start):
        rows, length = ids.shape
        flat = torch.arange(rows * length).view(rows, length)
        return (start + flat) % self.config.n_ctx


@FAULTS.part(
    "Two tokens have the same position: ids are halved.",
    "position // 2 of a model with patches or merged tokens",
    site="embed",
    words=r"position.*(half|halv|two|twice|pair|used|//|0 0 1 1)",
)
class PositionsHalved(GPT2):
    def positions(self, ids, mask, start):
        return super().positions(ids, mask, start) // 2


@FAULTS.part(
    "The embeddings of tokens are multiplied by the root of the width.",
    "Attention Is All You Need, section 3.4, which GPT-2 does not follow",
    site="embed",
    words=r"sqrt|root|scal|multipl|times|×|factor|coefficient",
)
class EmbeddingTimesRoot(GPT2):
    def embed(self, ids, positions):
        return self.wte(ids) * math.sqrt(self.config.n_embd) + self.wpe(positions)


@FAULTS.part(
    "The embeddings of positions are added once more before every block.",
    "DETR and Universal Transformers, which add them in every layer",
    site=r"h\.0\.(ln_1|.*)|embed",
    words=r"position.*(again|once more|twice|every (layer|block)|each (layer|block)|double|2|×)",
)
class PositionsInEveryBlock(GPT2):
    def blocks(self, x, allowed, past):
        x = x + self.wpe(torch.arange(x.shape[1]))
        return super().blocks(x, allowed, past)


@FAULTS.part(
    "Sines and cosines take the place of the learned positions.",
    "a tutorial of the first transformer",
    site="embed",
    words=r"\bsin|sinus|cosine",
)
class PositionsOfSines(GPT2):
    def embed(self, ids, positions):
        width = self.config.n_embd
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angle = positions[..., None] * rate
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
        return self.wte(ids) + waves.to(self.wte.weight.dtype)


@FAULTS.part(
    "The sum of the two embeddings is normalised.",
    "BERT's embeddings.LayerNorm, BLOOM's word_embeddings_layernorm",
    site="embed",
    words=r"norm",
)
class EmbeddingNormalised(GPT2):
    def embed(self, ids, positions):
        x = super().embed(ids, positions)
        return nn.functional.layer_norm(x, x.shape[-1:])


@FAULTS.part(
    "Ids pass through eight bits, so that 256 is read as 0.",
    "a token file written as uint8, or bytes taken for tokens",
    site="embed",
    words=r"uint8|8.bit|eight bits|modulo|256|wrap|ids?\b",
)
class IdsInEightBits(GPT2):
    def run(self, ids, mask=None, positions=None, past=None):
        return super().run(ids.to(torch.uint8).long(), mask, positions, past)


@FAULTS.part(
    "The last id of the vocabulary is read as the one before.",
    "clamp(max=vocab_size - 1) with a vocab_size that is one too small",
    site="embed",
    words=r"last (id|token|row)|clamp|clip|vocab|\bids?\b",
)
class LastIdClamped(GPT2):
    def embed(self, ids, positions):
        return super().embed(ids.clamp(max=self.config.n_vocab - 2), positions)


@FAULTS.part(
    "A segment embedding, the row of token 0, is added to every token.",
    "token_type_ids of zeros, as BERT has and GPT-2 may be handed",
    site="embed",
    words=r"token.?type|segment|row of token|wte\[0\]|token 0|constant|added",
)
class SegmentAdded(GPT2):
    def embed(self, ids, positions):
        return super().embed(ids, positions) + self.wte(torch.zeros_like(ids))


@FAULTS.after(
    "Token 0 is declared to be padding: its row has no gradient through the lookup.",
    "nn.Embedding(…, padding_idx=0)",
    law=r"tying\.gradient|gradient",
    words=r"padding|row",
)
def padding_idx_zero(model):
    model.wte.padding_idx = 0


@FAULTS.after(
    "Rows of the embedding that are longer than 1 are shortened to it.",
    "nn.Embedding(…, max_norm=1.0), copied from a recommender",
    law=r"weights\..*|activations\..*|logits|determinism.*|tying.*|architecture|calls|history.*",
    words=r"norm|renorm|scal|length|changes|row|\bstate|rescal",
)
def embedding_max_norm(model):
    # In a fresh table, as it would be; this one has rows of about 0.1.
    model.wte.max_norm = 0.05
