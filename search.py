"""`--quant auto`: a scheme for each weight, so that the artifact meets a divergence or a size."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import GateFailed, UsageError
from .runtime.sizes import parse_size, show_size

if TYPE_CHECKING:
    import torch

    from .compiler.importer import Imported
    from .quant.sensitivity import Candidate, Point

WINDOWS, LENGTH = 4, 256
MARGIN = 0.95  # of the divergence that was asked for: the kernels round activations, the search does not


@dataclass(frozen=True)
class Curve:
    """Divergence against bytes: the predicted path, and (bytes, divergence) where it was measured; `chosen` is a point's place."""

    points: list[Point]
    measured: dict[int, float]
    chosen: int
    rest: int

    @property
    def rules(self) -> tuple[str, ...]:
        """The choice, as --scheme takes it: MODULE=SCHEME."""
        return tuple(f"{module}={scheme}" for module, scheme in self.points[self.chosen].rules)

    def smaller(self, excess: int) -> Curve | None:
        """The same with a choice that is smaller by `excess` bytes; None where there is none."""
        wanted = self.points[self.chosen].size - excess
        place = next((i for i, p in enumerate(self.points) if p.size <= wanted), None)
        return replace(self, chosen=place) if place is not None else None

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "bytes": p.size + self.rest,
                "kl_predicted": p.predicted,
                "kl_measured": self.measured.get(i),
                "chosen": i == self.chosen,
            }
            for i, p in enumerate(self.points)
        ]

    def text(self) -> str:
        """A table of places spread over the path, those that were measured and the chosen one among them."""
        shown = {round(i * (len(self.points) - 1) / 11) for i in range(12)} | {self.chosen} | set(self.measured)
        lines = ["      size   KL measured   KL predicted"]
        for i in sorted(shown):
            measured = f"{self.measured[i]:.4f}" if i in self.measured else ""
            mark = "  <- chosen" if i == self.chosen else ""
            size = show_size(self.points[i].size + self.rest)
            lines.append(f"{size:>10}   {measured:>11}   {self.points[i].predicted:>12.4f}{mark}")
        return "\n".join(lines)


def choose(
    imported: Imported,
    params: Callable[[str], torch.Tensor],
    tokens: torch.Tensor,
    probe: list[int],
    *,
    rest: int,
    rules: tuple[tuple[str, str], ...] = (),
    target_size: str = "",
    max_kl: float | None = None,
    each: Callable[[Iterable[int]], Iterable[int]] = lambda items: items,
) -> Curve:
    """Measure and choose. `tokens` [S, T] judge sensitivity, `probe` is the gate's text; `rest` bytes of the artifact are not
    weights; weights that `rules` name are left alone; `each` shows progress. Raises GateFailed when nothing meets the target."""
    import torch

    from .conformance import divergence
    from .passes.order import raising_passes
    from .quant.scheme import parse_scheme
    from .quant.sensitivity import logits, measure, path

    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    candidates, groups, unplanned = _candidates(rules, graph)
    measure(graph, params, tokens[:WINDOWS, :LENGTH], candidates, groups, each)
    points = path(groups.values())
    rest += unplanned
    texts = [torch.tensor(probe), tokens[-1, :LENGTH]]
    references = [logits(graph, params, ids, {}).numpy() for ids in texts]
    measured: dict[int, float] = {}

    def harm(i: int) -> float:
        if i not in measured:
            rules = dict(points[i].rules)
            plan = {c.node.outputs[0].name: (c.weights, parse_scheme(rules[groups[c.key].modules[0]])) for c in candidates}
            found = [
                float(divergence(reference, logits(graph, params, ids, plan).numpy()).mean())
                for reference, ids in zip(references, texts, strict=True)
            ]
            measured[i] = max(found)
        return measured[i]

    if target_size:
        budget = parse_size(target_size) - rest
        fitting = [i for i, p in enumerate(points) if p.size <= budget]
        if not fitting:
            raise GateFailed(
                f"the smallest artifact has {show_size(points[-1].size + rest)}, more than {target_size}",
                "give a larger --target-size",
            )
        chosen = fitting[0]
        if max_kl is not None and harm(chosen) > max_kl:
            raise GateFailed(
                f"{target_size} costs a mean KL of {harm(chosen):.3g}, more than {max_kl}",
                "allow one of them more",
            )
        harm(chosen)
    else:
        assert max_kl is not None
        low, high = 0, len(points) - 1  # harm grows along the path, nearly always
        if harm(low) > max_kl * MARGIN:
            raise GateFailed(
                f"even the best schemes cost a mean KL of {harm(low):.3g}, more than {max_kl}", "allow a larger --max-kl"
            )
        if harm(high) <= max_kl * MARGIN:
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if harm(middle) <= max_kl * MARGIN else (low, middle)
        chosen = low
    return Curve(points, measured, chosen, rest)


def _candidates(rules: tuple[tuple[str, str], ...], graph: Any) -> tuple[list[Candidate], dict[str, Any], int]:
    """Every weight that no rule of the user names, in groups that get one scheme; and the bytes of all other parameters."""
    from .passes.quantize import Quantize, is_head, is_named, module_of, root_param, routers, weight_nodes, weights_of
    from .quant.scheme import parse_scheme
    from .quant.sensitivity import CANDIDATES, HEAD_CANDIDATES, TABLE_CANDIDATES, Candidate, Group, stored_size

    fixed = Quantize("", rules).plan(graph) if rules else {}
    gates = routers(graph)
    tables = {root_param(w, graph) for node, w in weight_nodes(graph) if node.op.name == "embedding"}
    found: list[Candidate] = []
    groups: dict[str, Group] = {}
    planned: set[str] = set()
    rest = 0
    for node, weight in weight_nodes(graph):
        module = module_of(weight, graph)
        named = is_named(node, weight, graph, rules)
        weights = tuple(weights_of(node))
        roots = [root_param(w, graph) for w in weights]
        if node.outputs[0].name in gates or named:
            scheme = fixed.get(node.outputs[0].name)
            rest += sum(
                stored_size(_shape(w), scheme or parse_scheme("bf16"))
                for w, r in zip(weights, roots, strict=True)
                if r not in planned
            )
            planned.update(roots)
            continue
        schemes_: tuple[str, ...]
        if roots[0] in tables:
            key, schemes_ = roots[0], TABLE_CANDIDATES
        elif is_head(node):
            key, schemes_ = roots[0], HEAD_CANDIDATES
        else:
            key, schemes_ = node.inputs[0].name, CANDIDATES
        group = groups.setdefault(key, Group())
        if module not in group.modules:
            group.modules.append(module)
        for w, r in zip(weights, roots, strict=True):
            if r not in planned:
                planned.add(r)
                for text in schemes_:
                    group.size[text] = group.size.get(text, 0) + stored_size(_shape(w), parse_scheme(text))
        found.append(Candidate(node, weights, key, schemes_))
    if not found:
        raise UsageError("--quant auto has nothing to choose: every weight is named by --scheme", "leave some to it")
    rest += sum(4 * _count(p) for p in graph.params if p.name not in planned and p.name not in graph.constants)
    return found, groups, rest


def _shape(value: Any) -> list[int]:
    return [int(n) for n in value.type.shape]


def _count(value: Any) -> int:
    total = 1
    for n in value.type.shape:
        total *= int(n)
    return total


def draw(curve: Curve, path: Path) -> None:
    """An SVG of divergence (logarithmic) against bytes: the predicted path, the measured points, the choice."""
    import math

    width, height, left, bottom = 640, 400, 70, 50
    sizes = [p.size + curve.rest for p in curve.points]
    harms = [max(p.predicted, 1e-6) for p in curve.points] + [max(v, 1e-6) for v in curve.measured.values()]
    low, high = math.floor(math.log10(max(min(harms), 1e-5))), math.ceil(math.log10(max(harms)))
    high = max(high, low + 1)

    def at(size: int, harm: float) -> tuple[float, float]:
        span = max(max(sizes) - min(sizes), 1)
        level = min(max((math.log10(max(harm, 1e-6)) - low) / (high - low), 0), 1)
        return left + (width - left - 20) * (size - min(sizes)) / span, height - bottom - (height - bottom - 20) * level

    line = " ".join("{:.1f},{:.1f}".format(*at(s, p.predicted)) for s, p in zip(sizes, curve.points, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polyline points="{line}" fill="none" stroke="#888"/>',
    ]
    for i, harm in sorted(curve.measured.items()):
        x, y = at(sizes[i], harm)
        label = html.escape(f"{show_size(sizes[i])}, KL {harm:.4f}")
        colour = "#c00" if i == curve.chosen else "#06c"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if i == curve.chosen else 3}" fill="{colour}"><title>{label}</title></circle>'
        )
        if i == curve.chosen:
            parts.append(f'<text x="{min(x + 8, width - 170):.1f}" y="{y - 8:.1f}" fill="#c00">{label}</text>')
    for power in range(low, high + 1):
        y = at(min(sizes), 10.0**power)[1]
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        size = int(min(sizes) + share * (max(sizes) - min(sizes)))
        parts.append(f'<text x="{at(size, 1)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{show_size(size)}</text>')
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 10}" text-anchor="middle">size of the artifact</text>')
    parts.append(
        f'<text x="16" y="{height / 2}" transform="rotate(-90 16 {height / 2})" text-anchor="middle">mean KL divergence, nats</text></svg>'
    )
    path.write_text("\n".join(parts) + "\n")
