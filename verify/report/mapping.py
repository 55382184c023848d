"""Which parameter was taken for which tensor, in few lines: equal lines of all layers as one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpt_verify.findings import Place
from gpt_verify.text import ranges

#: Of lines that cannot be drawn together (names without a layer) so many are printed.
_MOST = 60


def mapping_lines(mapping: Mapping[str, Place]) -> list[str]:
    """``blocks.0…11.qkv.weight: h0…11/attn/c_attn/w, transposed``.

    Args:
        mapping: the port's parameter → what it is in the checkpoint.
    """
    together: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for parameter, place in mapping.items():
        number, layer = re.search(r"\d+", parameter), place.layer
        if number and layer is not None:
            name = f"{parameter[: number.start()]}*{parameter[number.end() :]}"
            of = f"h*{str(place).removeprefix(f'h{layer}')}"
            together.setdefault((name, of), []).append((int(number[0]), layer))
        else:
            together.setdefault((parameter, str(place)), [])
    lines = [
        f"{name.replace('*', ranges([n for n, _ in pairs]), 1)}: "
        f"{of.replace('*', ranges([layer for _, layer in pairs]), 1)}"
        if in_order(pairs)
        else line
        for (name, of), pairs in together.items()
        for line in _apart(name, of, pairs)
    ]
    lines = list(dict.fromkeys(lines))
    if len(lines) > _MOST:
        lines[_MOST:] = [f"and {len(lines) - _MOST} more: --json has all"]
    return lines


def in_order(pairs: list[tuple[int, int]]) -> bool:
    """Whether two ranges say which number is which layer."""
    numbers, layers = ([pair[i] for pair in pairs] for i in (0, 1))
    return bool(pairs) and len(set(numbers)) == len(pairs) and _steps(numbers) == _steps(layers)


def _steps(values: list[int]) -> list[int]:
    return [value - min(values) for value in values]


def _apart(name: str, of: str, pairs: list[tuple[int, int]]) -> list[str]:
    """Each by itself."""
    if not pairs:
        return [f"{name}: {of}"]
    return [f"{name.replace('*', str(n), 1)}: {of.replace('*', str(m), 1)}" for n, m in pairs]
