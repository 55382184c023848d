"""Claims about the tokenizer, decided on the vocabulary files beside the checkpoint."""

from __future__ import annotations

from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence
from gpt_verify.claims.sources import ENCODER, HF, PAPER
from gpt_verify.reference.bpe import alphabet

#: Characters that hardly any text of training has: scripts, signs, control codes, and U+10FFFF.
SAMPLES = (
    "naïve café, Ærøskøbing",
    "Привет, мир",
    "שלום עולם",
    "こんにちは世界",
    "नमस्ते",
    "🦜🏴‍☠️ 👩‍👩‍👧",
    "∀ε>0 ∃δ>0",
    "\x00\x01\x7f\u200b\u2028\ufeff",
    "\U0010ffff\U000e0001",
    "  \t\n\n   x",
)

CLAIMS = (
    Claim(
        id="vocab-50257",
        statement="50,257 is 256 bytes, 50,000 merges and one end-of-text token.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, that is how the number comes about, and it has no other meaning. The vocabulary "
            "of this checkpoint is made in the same way: {bytes} bytes + {merges} merges + "
            "{special} special token = {vocab}."
        ),
        sources=(PAPER, ENCODER),
    ),
    Claim(
        id="unknown-token",
        statement="Characters that GPT-2 does not know become an unknown token.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "There is none. The tokens are sequences of bytes and all 256 bytes are among them, so "
            "that any text can be written: {samples} samples, from Hebrew to U+10FFFF, come back "
            "unchanged, at up to {most:.1f} tokens a character."
        ),
        sources=(PAPER, ENCODER),
    ),
    Claim(
        id="leading-space",
        statement="A word is the same token with and without a space before it.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: a space belongs to the word that follows it. Of {words} words of our prose, "
            "{differ} have other tokens after a space than at the beginning of a text."
        ),
        sources=(ENCODER,),
    ),
    Claim(
        id="bos-added",
        statement="GPT-2's tokenizer puts a beginning-of-text token in front.",
        kind=Kind.DOCUMENT,
        expected=Verdict.FALSE,
        answer=(
            "No. In {versions} an empty text has {empty} tokens, and a text has no more of them "
            "when special ones are asked for. In training, <|endoftext|> stood between texts; to "
            "have it in front, put it there."
        ),
        sources=(HF,),
    ),
)


@evidence("vocab-50257")
def made_of(case: Case) -> Measured:
    bpe = case.bpe
    merged = {left + right for left, right in bpe.merges}
    special = set(bpe.encoder) - merged - set(alphabet().values())
    n = {"bytes": len(alphabet()), "merges": len(merged), "special": len(special)}
    exact = len(special) == 1 and sum(n.values()) == len(bpe.encoder)
    verdict = Verdict.TRUE if exact else Verdict.FALSE
    return Measured(verdict, {**n, "vocab": len(bpe.encoder)}, asked=("vocabulary files",))


@evidence("unknown-token")
def unknown(case: Case) -> Measured:
    ids = [case.bpe.encode(sample) for sample in SAMPLES]
    back = [case.bpe.decode(each) for each in ids]
    most = max(len(each) / len(sample) for each, sample in zip(ids, SAMPLES, strict=True))
    verdict = Verdict.FALSE if tuple(back) == SAMPLES else Verdict.TRUE
    return Measured(verdict, {"samples": len(ids), "most": most}, asked=("vocabulary files",))


@evidence("leading-space")
def with_and_without(case: Case) -> Measured:
    words = sorted({word for word in case.text("prose").split() if word.isalpha()})
    differ = sum(case.bpe.encode(word) != case.bpe.encode(f" {word}") for word in words)
    verdict = Verdict.FALSE if differ else Verdict.TRUE
    return Measured(verdict, {"words": len(words), "differ": differ}, asked=("vocabulary files",))


@evidence("bos-added")
def beginning(case: Case) -> Measured:
    facts = [code.facts["tokenizer"] for code in case.code()]
    added = any(f["empty"] or f["words"] != f["words_without"] for f in facts)
    numbers = {"versions": case.versions, "empty": max(len(f["empty"]) for f in facts) or "no"}
    return Measured(Verdict.TRUE if added else Verdict.FALSE, numbers, asked=case.code_names)
