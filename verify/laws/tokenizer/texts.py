"""Texts and ids on which tokenizers part: chosen ones, the whole vocabulary, and random ones.

Which characters are letters or numbers depends on the version of Unicode, and the original leaves
that to its library. A character about which two versions may differ is *open*: a text holds at most
one of them, so that whatever a tokenizer takes it for can be found out.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

from gpt_verify.reference.bpe import BPE, WHITE_SPACE, alphabet, kind

#: Tokens that are decoded in one call, or whose texts are encoded in one.
TOGETHER = 64
#: Where random texts are taken from: blocks of Unicode in which something else happens each.
BLOCKS = (
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x52F),  # combining marks, Greek, Cyrillic
    (0x590, 0x6FF),  # right to left
    (0x900, 0xDFF),  # vowel signs, digits of their own
    (0x1100, 0x11FF),  # parts of Hangul syllables
    (0x1E00, 0x206F),  # spaces, joiners, marks of direction
    (0x2070, 0x2BFF),  # numbers that are no digits, signs
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),  # private use
    (0xF900, 0xFFFD),  # compatibility forms
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
    (0xE0000, 0x10FFFF),
)
#: What stands between words, or at their edges.
EDGES = " '\n\t\r\x1c\x85\xa0\u2003\u3000,.!?0123456789strevmldST"

BATTERY: dict[str, str] = {
    "nothing": "",
    "one space": " ",
    "prose": "The quick brown fox jumps over the lazy dog; it isn't its own.",
    "leading space": " hello world",
    "no leading space": "hello world",
    "trailing spaces": "hello  ",
    "runs of spaces": "a  b   c    d          e",
    "only spaces": "     ",
    "tabs and lines": "\tone\n\ttwo\r\n\n\n three \t \n four\v\f five",
    "other spaces": "a\xa0b \xa0 c\u2003d\u2009\u200ae\u2028f\u2029g\u202fh\u205fi\u3000j\u1680k",
    "separators that are no white space": "a\x1cb\x1dc\x1ed\x1fe",
    "clean-up": "Well , it is n't so . Is it ? No ! They 're , we 've , I 'm , it 's . ' quoted '",
    "contractions": "it's don't we're I've I'm he'll she'd IT'S 's ''s O'Reilly o'clock o\u2019s",
    "end of text": "<|endoftext|>",
    "special tokens": "<|endoftext|>a<|endoftext|> b <|endoftext|><|pad|></s><s>[PAD][UNK]<unk>",
    "capitals": "HELLO Hello hELLO İstanbul STRASSE Straße ǅ Σίσυφος",
    "numbers": "3.14 1,000,000 0x1F 007 x2y3 12345678901234567890 ½ Ⅷ ٣٤ ১২ ²³ ①",
    "accents": "naïve café cafe\u0301 e\u0301\u0323 \u0301 Å Å \u1e9b\u0323",
    "compatibility": "ﬁ ﬃ \uff21\uff11 ㎏ ™ ｶﾞ ﷺ ² Ⅳ",
    "Hangul": "한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "Greek, Cyrillic": "Ελλάδα Привет, мир!",
    "Chinese, Japanese": "中文字符 你好\uff0c世界。 日本語のテキスト カタカナ",
    "Hindi, Thai": "हिन्दी भाषा ภาษาไทย",
    "words of two scripts": "aж1жa aα1αa a中1中a aあ aक1क a한1한 aא1 a\u06271 aไ1 é1é½a ½1 ٣a1٣",
    "right to left": "العربية עברית \u200fabc\u200e \u202bمختلط 123\u202c",
    "emoji": "😀👍\U0001f3fd👩\u200d👩\u200d👧\u200d👦 🇫🇷 ☃\ufe0f ❤\ufe0f\u200d🔥 1\ufe0f\u20e3",
    "joiners": "a\u200db\u200cc\u2060d\ufeffe\xadf",
    "NUL and controls": "\x00a\x00\x01\x02 \x07\x08\x1b[0m\x7f\x80\x9f",
    "replacement": "\ufffd a\ufffd\ufffdb",
    "last code points": "\ue000\uf8ff\ufffe\uffff\U0001ffff\U000e0001\U0010ffff",
    # Open ones, each of which some version of Unicode does not know yet.
    "a letter of Unicode 16": "a\u1c89b 1\u1c89 \u1c89\u1c89",
    "a digit of Unicode 16": "1\U00010d40 a\U00010d40",
    "an ideograph of Unicode 15": "中\U00031350 a\U00031350",
    "a letter of Unicode 4": "a\u0237b 1\u0237",
    "every byte": "".join(map(chr, range(256))),
    "lengths in UTF-8": "\x7f\x80\u06fe\u0905\uffee\U00010300",
    "program": "def f(x):\n    return {'a': x ** 2}  # squares\n\nif __name__:\n\tf(1)\n",
    "markup": '<p class="a">&nbsp;&amp;</p>\n\n<!-- x -->',
    "address": "https://example.org/a_b?c=d%20e&f=#g  user@example.org",
    "signs": "!!!??...---___***===~~~ $%^&*() «» “quoted” \u2018single\u2019 …–—",
    "one long word": "a" * 10_000,
    "long word of two letters": "ab" * 2_500 + "ba" * 2_500,
    "long run of signs": "=" * 3_000 + "-" * 3_000,
    "long run of spaces": "x" + " " * 5_000 + "y",
    "long run of lines": "\n" * 1_000,
}


@cache
def is_open(character: str) -> bool:
    """Whether versions of Unicode may differ about its being a letter, a number or white space.

    Known to this Python, and taken by Unicode 3.2, which it carries too, for the same: settled.
    """
    if unicodedata.category(character) == "Cn":
        return not _is_no_character(ord(character))
    before = unicodedata.ucd_3_2_0.category(character)[0]
    old = " " if character in WHITE_SPACE or before == "Z" else before if before in "LN" else "?"
    return old != kind(character)


def _is_no_character(code: int) -> bool:
    """One of the 66 code points that no version will ever assign."""
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def with_one_open(text: str) -> str:
    """A text in which every open character is the same one; lone surrogates are left out."""
    text = text.encode("utf-8", "ignore").decode()
    found = next(filter(is_open, text), "")
    return "".join(found if is_open(c) else c for c in text)


def texts(bpe: BPE, rng: np.random.Generator) -> dict[str, str]:
    """The battery, every token of the vocabulary that is text, and random Unicode."""
    found = {name: with_one_open(text) for name, text in BATTERY.items()}
    words = [bpe.decode_bytes([token]) for token in sorted(bpe.decoder)]
    valid = [word for word in map(_text, words) if word is not None and not word.isspace()]
    for first in range(0, len(valid), TOGETHER):
        # A line break lets every word stand as a piece of its own, with its leading space.
        lines = "\n".join(valid[first : first + TOGETHER])
        found[f"words of the vocabulary from {first}"] = with_one_open(lines)
    for n in range(200):
        found[f"random {n}"] = with_one_open(_random_text(rng))
    return found


def id_lists(
    bpe: BPE, encoded: dict[str, list[int]], rng: np.random.Generator
) -> dict[str, list[int]]:
    """What the texts are encoded to, every id, and ids that cut characters in two."""
    found = dict(encoded)
    ids = sorted(bpe.decoder)
    for first in range(0, len(ids), TOGETHER):
        found[f"ids from {ids[first]}"] = ids[first : first + TOGETHER]
    whole = bpe.encode("é中😀")
    found |= {f"a text cut after {n}": whole[:n] for n in range(1, len(whole))}
    found |= {f"a text cut before {n}": whole[n:] for n in range(1, len(whole))}
    bytes_alone = [bpe.encoder[alphabet()[byte]] for byte in range(256)]
    for n in range(100):
        # Bytes by themselves are what breaks characters most.
        choice = bytes_alone if n % 2 else ids
        found[f"random ids {n}"] = rng.choice(choice, int(rng.integers(1, 24))).tolist()
    return found


def _random_text(rng: np.random.Generator) -> str:
    """A few runs, each from one block or from the edges of words."""
    runs = []
    for _ in range(int(rng.integers(1, 6))):
        size = int(rng.integers(1, 8))
        if rng.random() < 0.4:
            runs += rng.choice(list(EDGES), size).tolist()
        else:
            first, last = BLOCKS[int(rng.integers(len(BLOCKS)))]
            runs += map(chr, rng.integers(first, last + 1, size).tolist())
    return "".join(runs)


def _text(word: bytes) -> str | None:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return None
