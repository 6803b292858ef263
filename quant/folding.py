"""Where the inputs of products can be divided by factors, because what makes those inputs can absorb them.

x·Wᵀ = (x/s)·(W·s)ᵀ. The division costs nothing where x is a norm's output (its weight absorbs it), a product's output times
something else (its rows do), or attention's output (the rows of the values' product do). Found by the graph's structure alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.experts import Experts
from ..compiler.ir.ops.layer_norm import LayerNorm
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.rms_norm import RmsNorm
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.view import View


@dataclass(frozen=True)
class Place:
    """One axis of a parameter; `offset` is added to it before it is used (norms that multiply by 1 + weight)."""

    param: str
    axis: int
    offset: float = 0.0


@dataclass(frozen=True)
class Region:
    """An input that several products share, and what absorbs its factors.

    `weights` are the products' weights, by value, each with its parameter's axis of K. `absorbers` are divided: the factor of
    entry rows[c] is that of channel c. `coded` names the weight value whose codes may be chosen already when the factors are known.
    """

    x: Value
    weights: tuple[tuple[Value, Place], ...]
    absorbers: tuple[Place, ...]
    rows: torch.Tensor
    exact: bool
    coded: str = ""


@dataclass
class Folds:
    """Parameters as the checkpoint has them, with changes: float32 where there are any."""

    read: Callable[[str], torch.Tensor]
    _changes: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = field(default_factory=dict)

    def __call__(self, name: str) -> torch.Tensor:
        tensor = self.read(name)
        for change in self._changes.get(name, ()):
            tensor = change(tensor.float())
        return tensor

    def change(self, param: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change a parameter from now on."""
        self._changes.setdefault(param, []).append(change)

    def multiply(self, place: Place, factors: torch.Tensor) -> None:
        """Multiply a parameter by factors [size of its axis] from now on."""

        def multiplied(tensor: torch.Tensor) -> torch.Tensor:
            shape = [1] * tensor.ndim
            shape[place.axis] = -1
            return (tensor + place.offset) * factors.reshape(shape) - place.offset

        self.change(place.param, multiplied)


def regions(graph: Graph, planned: Mapping[str, object]) -> dict[str, Region]:
    """By the name of x: the regions in which at least one product is `planned` (by its output's name)."""
    finder = Finder(graph)
    found = {}
    for node in graph.nodes:
        region = finder.region(node)
        if region is not None and any(n.outputs[0].name in planned for n in finder.products(node.outputs[0])):
            found[node.outputs[0].name] = region
    return found


class Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.made, self.users = graph, graph.producers(), graph.users()
        self.static = graph.static_values()
        self.outputs = {v.name for v in graph.outputs}
        self.readers: dict[str, int] = {}  # products and tables that read each parameter
        for node in graph.nodes:
            for value in node.inputs:
                if not value.name.startswith("%"):
                    self.readers[value.name] = self.readers.get(value.name, 0) + 1

    def region(self, node: Node) -> Region | None:
        x = node.outputs[0]
        if len(node.outputs) != 1 or x.name in self.static:
            return None
        weights = self.weights(x)
        if not weights:
            return None
        absorbed = self._norm(node) or self._rows(x)
        if absorbed is None:
            return None
        absorbers, rows, coded = absorbed
        return Region(x, tuple(weights), absorbers, rows, isinstance(node.op, RmsNorm | LayerNorm), coded)

    def products(self, x: Value) -> list[Node]:
        found = []
        for node in self.users.get(x.name, []):
            if isinstance(node.op, Linear | Experts):
                found.append(node)
            elif self._keeps_channels(node):
                found.extend(self.products(node.outputs[0]))
        return found

    def _keeps_channels(self, node: Node) -> bool:
        return isinstance(node.op, Cast) or (
            isinstance(node.op, View) and node.outputs[0].type.shape[-1] == node.inputs[0].type.shape[-1]
        )

    def weights(self, x: Value, passing: tuple[type, ...] = ()) -> list[tuple[Value, Place]] | None:
        """The weights that x goes into, through ops of the kinds `passing` too; None when it goes anywhere else."""
        if x.name in self.outputs:
            return None
        found: list[tuple[Value, Place]] = []
        for node in self.users.get(x.name, []):
            if isinstance(node.op, Linear) and node.inputs[0].name == x.name and x.name not in {v.name for v in node.inputs[1:]}:
                weight = node.inputs[1]
            elif isinstance(node.op, Experts) and node.inputs[0].name == x.name:
                weight = node.inputs[3]
            elif self._keeps_channels(node) or isinstance(node.op, passing):
                more = self.weights(node.outputs[0], passing)
                if more is None:
                    return None
                found += more
                continue
            else:
                return None
            place = self.place(weight, len(weight.type.shape) - 1)
            if place is None:
                return None
            found.append((weight, place))
        return found

    def place(self, value: Value, axis: int) -> Place | None:
        """The parameter's axis that is this axis of a static value; None for anything but a parameter that is turned or cast,
        and for one that is used elsewhere too."""
        while value.name in self.made:
            node = self.made[value.name]
            if len(self.users[value.name]) != 1:
                return None
            if isinstance(node.op, Permute):
                axis = node.op.order[axis]
            elif not isinstance(node.op, Cast):
                return None
            value = node.inputs[0]
        if not value.name.startswith("@") or value.name in self.graph.constants or self.readers.get(value.name) != 1:
            return None
        return Place(value.name[1:], axis)

    def _norm(self, node: Node) -> tuple[tuple[Place, ...], torch.Tensor, str] | None:
        if not isinstance(node.op, RmsNorm | LayerNorm) or len(node.inputs) < 2:
            return None
        places = [self.norm_weight(v) for v in node.inputs[1:]]
        if None in places:
            return None
        return tuple(p for p in places if p is not None), torch.arange(int(str(node.inputs[0].type.shape[-1]))), ""

    def norm_weight(self, value: Value) -> Place | None:
        node = self.made.get(value.name)
        while node is not None and isinstance(node.op, Cast):
            value = node.inputs[0]
            node = self.made.get(value.name)
        if node is None or not isinstance(node.op, Pointwise) or node.op.fn != "add":
            return self.place(value, 0)
        for one, other in (node.inputs, node.inputs[::-1]):
            number = self.number(other)
            place = self.place(one, 0)
            if number is not None and place is not None:
                return Place(place.param, place.axis, number)
        return None

    def number(self, value: Value) -> float | None:
        """The value of a constant of one element."""
        node = self.made.get(value.name)
        while node is not None and isinstance(node.op, Cast | View):
            value = node.inputs[0]
            node = self.made.get(value.name)
        numbers = self.graph.constants.get(value.name)
        if numbers is not None and len(numbers) == 1:
            return float(numbers[0])
        fill = getattr(node.op, "value", None) if node is not None and node.op.name == "full" else None
        return float(fill) if fill is not None else None

    def _rows(self, x: Value) -> tuple[tuple[Place, ...], torch.Tensor, str] | None:
        """The product whose rows become x's channels, through a product with something else or through attention."""
        width = x.type.shape[-1]
        return self._above(x, torch.arange(width)) if isinstance(width, int) else None

    def _above(
        self, value: Value, rows: torch.Tensor, *, cut: bool = False
    ) -> tuple[tuple[Place, ...], torch.Tensor, str] | None:
        """What absorbs the factors of a value whose channels come from these rows; `cut`: they are a part of them."""
        node = self.made.get(value.name)
        if node is None or value.name in self.static:
            return None
        if isinstance(node.op, Linear):
            return self._linear_rows(node, rows) if cut or len(self.users[value.name]) == 1 else None
        for source, its_rows, part in self._sources(node, rows):
            if len(self.users[source.name]) == 1 or part:
                found = self._above(source, its_rows, cut=part)
                if found is not None:
                    return found
        return None

    def _sources(self, node: Node, rows: torch.Tensor) -> list[tuple[Value, torch.Tensor, bool]]:
        """The inputs of which dividing any one divides the output, the channels that the output's come from, and whether only a
        part of that input goes this way."""
        op = node.op
        if isinstance(op, Cast | View):
            return [(node.inputs[0], rows, False)]
        if isinstance(op, Pointwise) and op.fn == "mul":
            return [(v, rows, False) for v in node.inputs if v.type.shape == node.outputs[0].type.shape]
        if isinstance(op, Slice) and op.dim == len(node.inputs[0].type.shape) - 1 and op.step == 1:
            return [(node.inputs[0], rows + op.start, True)]
        if isinstance(op, Attention):
            heads, (groups, size) = node.inputs[0].type.shape[2], node.inputs[2].type.shape[2:]
            if isinstance(heads, int) and isinstance(groups, int) and isinstance(size, int):
                return [(node.inputs[2], rows // size // (heads // groups) * size + rows % size, False)]
        return []

    def _linear_rows(self, node: Node, rows: torch.Tensor) -> tuple[tuple[Place, ...], torch.Tensor, str] | None:
        weight = node.inputs[1]
        place = self.place(weight, len(weight.type.shape) - 2)
        assert isinstance(node.op, Linear)
        if place is None or node.op != Linear(bias=node.op.bias):
            return None
        places = [place]
        if node.op.bias:
            bias = self.place(node.inputs[2], 0)
            if bias is None:
                return None
            places.append(bias)
        return tuple(places), rows, weight.name
