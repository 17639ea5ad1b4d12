"""A plot of cost against size, as the text of an SVG file: two panels of lines over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 200, 60, 30, 80
_COLOURS = ("#1b6ca8", "#d1495b", "#3a8f4d", "#8d5fb0", "#b9770e", "#444444")
Lines = Mapping[str, Sequence[float]]


def draw(sizes_are: str, sizes: Sequence[int], seconds: Lines, mebibytes: Lines) -> str:
    """`seconds` and `mebibytes`: one value a size, by what is measured."""
    width, height = 2 * (_LEFT + _WIDTH) + _GAP, _TOP + _HEIGHT + 50 + 18 * len(seconds)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_panel(_LEFT, "seconds", sizes, seconds, logarithmic=True),
        *_panel(
            2 * _LEFT + _WIDTH + _GAP // 2,
            "MiB of anonymous memory, at most",
            sizes,
            mebibytes,
            logarithmic=False,
        ),
        f'<text x="{width / 2}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">{escape(sizes_are)}</text>',
    ]
    for i, name in enumerate(seconds):
        y = _TOP + _HEIGHT + 56 + 18 * i
        parts.append(f'<path d="M{_LEFT} {y - 4}h24" stroke="{_colour(i)}" stroke-width="2"/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y}">{escape(name.replace("`", ""))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: float, title: str, sizes: Sequence[int], lines: Lines, logarithmic: bool) -> list[str]:
    values = [value for line in lines.values() for value in line]
    ticks = _decades(min(values), max(values)) if logarithmic else _steps(max(values))
    scale = math.log10 if logarithmic else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def x(size: float) -> float:
        span = math.log10(sizes[-1] / sizes[0]) or 1
        return left + 12 + (_WIDTH - 24) * math.log10(size / sizes[0]) / span

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - (scale(value) - low) / (high - low))

    parts = [f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{escape(title)}</text>']
    for tick in ticks:
        parts.append(f'<path d="M{left} {y(tick):.1f}h{_WIDTH}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{x(size):.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{size:,}</text>'
        for size in sizes
    ]
    for i, line in enumerate(lines.values()):
        points = [(x(size), y(value)) for size, value in zip(sizes, line, strict=True)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{_colour(i)}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{_colour(i)}"/>' for a, b in points]
    return parts


def _decades(least: float, most: float) -> list[float]:
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**n for n in range(first, max(last, first + 1) + 1)]


def _steps(most: float) -> list[float]:
    """From 0 in four to eight round steps to `most` at least."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough)
    return [step * n for n in range(math.ceil(most / step) + 1)]


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]
