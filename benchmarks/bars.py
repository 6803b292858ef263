"""A comparison's figures as bars: `python -m benchmarks.bars RESULTS.json …` draws RESULTS.svg beside each; `make bench` does so for its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, NAMES, LINE, TOP, ACROSS = 330, 150, 18, 40, 3


def panel(left: float, top: float, title: str, bars: list[tuple[str, dict[str, float]]], unit: str) -> str:
    """One cell: a bar for each engine, its median written beside it, its spread a line."""
    most = max(cell["max"] for _, cell in bars)
    room = WIDTH - NAMES - 60
    drawn = [f'<text x="{left}" y="{top + 14}" font-weight="bold">{escape(title)}</text>']
    for i, (name, cell) in enumerate(bars):
        y = top + 24 + i * LINE
        x = left + NAMES
        ours = name.startswith("llmc ")
        low, middle, high = (room * cell[k] / most for k in ("min", "median", "max"))
        drawn.append(f'<text x="{x - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        drawn.append(f'<rect x="{x}" y="{y}" width="{middle:.1f}" height="{LINE - 5}" fill="{"#06c" if ours else "#bbb"}"/>')
        drawn.append(
            f'<line x1="{x + low:.1f}" x2="{x + high:.1f}" y1="{y + 6.5}" y2="{y + 6.5}" stroke="{"#9cf" if ours else "#666"}"/>'
        )
        figure = f"{cell['median']:.2f}" if unit == "s" else f"{cell['median']:.0f}"
        drawn.append(f'<text x="{x + high + 5:.1f}" y="{y + 11}">{figure}</text>')
    return "".join(drawn)


def plot(result: dict[str, Any]) -> str:
    """All rows (numbers of bits) of a comparison, three panels a line. Returns an SVG document."""
    titles = {"start": ("process to first token, s", "s"), "rss": ("peak memory, MiB", "MiB")}
    body, top = [], float(TOP)
    prompt = result.get("settings", {}).get("prompt", 512)
    for row in result["rows"]:
        engines = {name: cells for name, cells in row["engines"].items() if isinstance(cells, dict)}
        names = list(next(iter(engines.values())))
        body.append(
            f'<text x="10" y="{top}" font-size="14">{escape(row["name"])} ({row.get("reps") or result["reps"]} repetitions)</text>'
        )
        for i, name in enumerate(names):
            at_once = f"{name.removeprefix('at_once_')} requests at once, output tokens a second"
            title, unit = titles.get(
                name, (at_once if name.startswith("at_once_") else f"{name} at {prompt}, tokens a second", "")
            )
            scale = 2**20 if name == "rss" else 1
            bars = [(engine, {k: v / scale for k, v in cells[name].items()}) for engine, cells in engines.items()]
            body.append(panel(10 + i % ACROSS * WIDTH, top + 8 + i // ACROSS * (34 + LINE * len(engines)), title, bars, unit))
        top += 26 + -(-len(names) // ACROSS) * (34 + LINE * len(engines))
    size = f'width="{20 + ACROSS * WIDTH}" height="{top:.0f}"'
    head = f"{result['machine']['cpu']}, {result['threads']} threads, medians, lines from the least to the most; commit {result['commit']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11"><rect {size} fill="white"/>'
        f'<text x="10" y="18">{escape(head)}</text>{"".join(body)}</svg>\n'
    )


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.with_name(path.name.removesuffix(".json") + ".svg").write_text(plot(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
