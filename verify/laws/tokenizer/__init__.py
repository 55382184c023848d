"""The laws of the tokenizer."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.tokenizer.check import check_decode, check_encode
from gpt_verify.laws.tokenizer.faults import FAULTS
from gpt_verify.port import TOKENIZERS

LAW = Law(
    "Tokenizer",
    90,
    (
        Part(
            "tokenizer.encode",
            check_encode,
            "the ids that `encoder.json` and `vocab.bpe` define, for arbitrary unicode; special "
            "tokens are text; nothing is added",
            needs=(TOKENIZERS,),
        ),
        Part(
            "tokenizer.decode",
            check_decode,
            "and back, nothing cleaned up; bytes that are no UTF-8 become U+FFFD",
            needs=(TOKENIZERS,),
        ),
    ),
    FAULTS,
)
