"""The tokens that laws draw hold what means something to somebody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import CONFIG, checkpoint
from plain_ports import plain
from subjects import subject


def test_the_first_and_the_last_id_and_a_repetition_are_among_them() -> None:
    held, places = subject(plain()), set()
    for key in range(40):
        tokens = held.tokens(1, 8, key)
        assert {0, CONFIG.n_vocab - 1} <= set(tokens.ravel().tolist())
        places.add(int(np.argmax(tokens[0] == CONFIG.n_vocab - 1)))
    assert places == set(range(8))
    repeated = [(np.diff(held.tokens(3, 8, key)) == 0).any() for key in range(40)]
    assert np.mean(repeated) > 0.5


def test_ids_that_are_named_beside_the_weights(tmp_path: Path) -> None:
    named = {"eos_token_id": [7, 9], "pad_token_id": 11, "bos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(named | {"vocab_size": 101}))
    held = subject(plain(), replace(checkpoint(), path=tmp_path))
    assert held.special == [0, 100, 7, 9, 11]
    assert set(held.special) <= set(held.tokens(2, 8).ravel().tolist())
    (tmp_path / "config.json").write_text("no JSON")
    assert subject(plain(), replace(checkpoint(), path=tmp_path)).special == [0, 100]


def test_what_is_short_is_drawn_at_random_all_the_same() -> None:
    held = subject(plain())
    assert len({int(held.tokens(1, 1, key)[0, 0]) for key in range(40)}) > 20
    assert len({held.tokens(1, 2, key).tobytes() for key in range(40)}) > 20
    one = replace(CONFIG, n_vocab=1)
    assert not subject(plain(source=checkpoint(one)), checkpoint(one)).tokens(2, 8).any()


def test_the_same_key_has_the_same_tokens() -> None:
    one, other = subject(plain()), subject(plain())
    np.testing.assert_array_equal(one.tokens(3, 8, 1), other.tokens(3, 8, 1))
    assert (one.tokens(3, 8, 1) != one.tokens(3, 8, 2)).any()
