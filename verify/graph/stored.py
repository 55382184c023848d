"""The reference against values that are stored here: is it itself still?

Whatever computes in this process may have been changed before anybody looked, by a module that was
imported first. So a run of the reference on a tiny model is checked against logits that were
written down, at the limit that a port in float64 is held to. The weights are fractions that every
machine has exactly; ``tests/laws/test_self_check.py`` makes the logits again, without NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.numerics.scores import limit_max
from gpt_verify.reference.config import Config
from gpt_verify.reference.model import logits
from gpt_verify.reference.weights import tensor_table

CONFIG = Config(n_vocab=7, n_ctx=5, n_embd=6, n_head=3, n_layer=2)
TOKENS = (6, 0, 3, 3, 1)
#: Root mean square of the logits' noise in float64 (``gpt_verify.graph.floor``).
FLOOR = 6.4e-16
# fmt: off
LOGITS: tuple[float, ...] = (
    -0.3310543953179483, -0.47511829456756843, 0.05320406843311769, -0.7695656457219496,
    1.5781413646753504, -0.8853471718589034, 1.9784639255104843, -0.2765424002654123,
    -0.31175249519871195, 0.012595892310430727, -0.921829242666964, 1.5410081890192842,
    -0.8379202005115256, 1.9464477114192549, -0.17404465347246997, -0.5476818793259541,
    0.027892350499765472, -0.7697585037770865, 1.501764752494028, -0.6698204647353705,
    1.8598250606283453, -0.12024710040317754, -0.6954695229671367, 0.04746626863404392,
    -0.6696661136137473, 1.4771683681532224, -0.5602167525170154, 1.7949242280132165,
    -0.21415022440682094, -0.2862805548708272, -0.02054579095197514, -0.9346097640702378,
    1.4887283811027217, -0.7579122442531175, 1.8814453954361579,
)
# fmt: on


def weights() -> dict[str, NDArray[np.float64]]:
    """Multiples of 1/64 between -50/64 and 50/64, in no order."""
    made, at = {}, 1
    for name, spec in tensor_table(CONFIG).items():
        count = int(np.prod(spec.shape))
        values = [((at + i) * 7919 % 101 - 50) / 64 for i in range(count)]
        made[name] = np.array(values, np.float64).reshape(spec.shape)
        at += count
    return made


def self_check() -> str | None:
    """What the reference computes otherwise than it did when the values were stored, in words."""
    with np.errstate(all="ignore"):
        got_TV = logits(weights(), CONFIG, np.array(TOKENS))
    expected_TV = np.array(LOGITS).reshape(len(TOKENS), CONFIG.n_vocab)
    if got_TV.shape != expected_TV.shape:
        return f"its logits have shape {list(got_TV.shape)}, should be {list(expected_TV.shape)}"
    apart = [abs(float(a) - float(b)) for a, b in zip(got_TV.flat, expected_TV.flat, strict=True)]
    limit = LIMIT_FLOORS * limit_max(len(apart)) * FLOOR
    if all(x <= limit for x in apart):
        return None
    at = max(range(len(apart)), key=lambda i: apart[i] if apart[i] == apart[i] else float("inf"))
    t, v = divmod(at, CONFIG.n_vocab)
    got, expected = float(got_TV[t, v]), LOGITS[at]
    return f"logits[{t}, {v}] = {got:.17g}, should be {expected:.17g} ± {limit:.1g}"
