"""Shades from dark blue by way of grey to yellow.

The map is a straight line in OKLab (Ottosson 2020, "A perceptual color space for image
processing"): lightness grows evenly, and the hue stays on the axis from blue to yellow, which is
the one that people with deuteranopia and protanopia see. In grey, as in print, the order stays.
"""

from __future__ import annotations

from functools import cache

LEVELS = 64
#: Ends of the line: lightness, green to red, blue to yellow.
_DARK, _BRIGHT = (0.26, -0.01, -0.105), (0.96, -0.03, 0.13)

Rgb = tuple[int, int, int]


def _srgb(lightness: float, a: float, b: float) -> Rgb:
    """OKLab to 8-bit sRGB, by the matrices of Ottosson's article."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * _encoded(min(max(c, 0.0), 1.0))) for c in linear)
    return red, green, blue


def _encoded(c: float) -> float:
    """IEC 61966-2-1."""
    return float(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)


@cache
def palette() -> tuple[Rgb, ...]:
    """One colour for each level, the darkest first."""
    steps = [i / (LEVELS - 1) for i in range(LEVELS)]
    return tuple(
        _srgb(*(d + t * (e - d) for d, e in zip(_DARK, _BRIGHT, strict=True))) for t in steps
    )


def luminance(colour: Rgb) -> float:
    """Relative luminance, 0 … 1 (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(colour: Rgb) -> Rgb:
    """Black or white, whichever stands out more on this colour."""
    return (0, 0, 0) if luminance(colour) > 0.1791 else (255, 255, 255)


def hexadecimal(colour: Rgb) -> str:
    """``#0a141e``."""
    return "#" + "".join(f"{c:02x}" for c in colour)
