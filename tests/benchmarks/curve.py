"""``python -m tests.benchmarks.curve``: draw the table of many keys in ``docs/performance.md``.

The picture is made of the page's own numbers, so that the two cannot differ.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE, IMAGE = ROOT / "docs/performance.md", ROOT / "docs/images/many-keys.svg"
WIDTH, HEIGHT, LEFT, BELOW = 640, 360, 60, 50
COLORS = ("#0b6e4f", "#8d99ae", "#c1121f", "#adb5bd", "#1d4ed8")


def curves(page: str) -> dict[str, list[tuple[int, float]]]:
    """Seconds by the number of keys, of each row of the table."""
    start = page.index("| µs per item above the bare source |")
    head, _, *rows = page[start : page.index("\n\n", start)].splitlines()
    keys = [int(cell.replace(",", "")) for cell in _cells(head)[1:]]
    found = {}
    for name, *cells in map(_cells, rows):
        points = zip(keys, cells, strict=True)
        found[name] = [(count, float(cell) * count / 1e6) for count, cell in points if cell]
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def drawn(page: str) -> str:
    """The picture, by logarithms on both axes."""

    def x(count: float) -> float:
        return LEFT + (math.log10(count) - 5) / 3 * (WIDTH - LEFT - 190)

    def y(seconds: float) -> float:
        return HEIGHT - BELOW - (math.log10(seconds) + 1) / 3.5 * (HEIGHT - BELOW - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#555">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for power in range(5, 9):
        at = x(10**power)
        parts.append(f'<path d="M{at:.0f} 20V{HEIGHT - BELOW}" stroke="#ddd"/>')
        label = f"{10**power:,}"
        parts.append(f'<text x="{at:.0f}" y="{HEIGHT - 30}" text-anchor="middle">{label}</text>')
    for power in range(-1, 3):
        at = y(10**power)
        parts.append(f'<path d="M{LEFT} {at:.0f}H{x(1e8):.0f}" stroke="#ddd"/>')
        label = f"{10.0**power:g} s"
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.0f}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{x(10**6.5):.0f}" y="{HEIGHT - 8}">completed keys</text>')
    for (name, points), color in zip(curves(page).items(), COLORS, strict=True):
        line = " ".join(f"{x(count):.1f},{y(seconds):.1f}" for count, seconds in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(count):.1f}" cy="{y(seconds):.1f}" r="3" fill="{color}"/>'
            for count, seconds in points
        ]
        last = points[-1]
        parts.append(
            f'<text x="{x(last[0]) + 8:.0f}" y="{y(last[1]) + 4:.0f}" fill="{color}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    IMAGE.write_text(drawn(PAGE.read_text("utf-8")), "utf-8")
    print(IMAGE.relative_to(ROOT))
