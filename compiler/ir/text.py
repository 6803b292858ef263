"""The IR's textual form: `print_graph` and `parse_graph` are inverse to each other.

llmc.ir 1
input %input_ids: i64[1,T]
param @model.norm.weight: bf16[576]
const @inv_freq: f32[2] = [1.0, 0.5]
%3: bf16[1,T,576] = rms_norm(%2, @model.norm.weight) {eps=1e-05} // model.norm
return %3
"""

from __future__ import annotations

import ast
import re

from ...errors import VerifyError
from .graph import Graph, Node, Value
from .op import make_op
from .types import TensorType

HEADER = "llmc.ir 1"
_NAME = r"[@%][\w.\-/:]+"
_NODE = re.compile(rf"((?:{_NAME}: [^=]+?)(?:, {_NAME}: [^=]+?)*) = (\w+)\(([^)]*)\)(?: \{{(.*)\}})?(?: // (.*))?")


def print_graph(graph: Graph) -> str:
    """The graph as text, one line a node."""
    lines = [HEADER]
    lines += [f"input {v.name}: {v.type}" for v in graph.inputs]
    for p in graph.params:
        if p.name in graph.constants:
            values = ", ".join(map(repr, graph.constants[p.name]))
            lines.append(f"const {p.name}: {p.type} = [{values}]")
        else:
            lines.append(f"param {p.name}: {p.type}")
    for node in graph.nodes:
        outputs = ", ".join(f"{o.name}: {o.type}" for o in node.outputs)
        attributes = ", ".join(f"{k}={v!r}" for k, v in node.op.attributes().items())
        line = f"{outputs} = {node.op.name}({', '.join(v.name for v in node.inputs)})"
        lines.append(line + (f" {{{attributes}}}" if attributes else "") + (f" // {node.scope}" if node.scope else ""))
    lines.append("return " + ", ".join(v.name for v in graph.outputs))
    return "\n".join(lines) + "\n"


def _typed(text: str, where: str) -> Value:
    name, sep, kind = text.partition(": ")
    if not sep:
        raise VerifyError(f"{where}: expected `name: type`, found {text!r}")
    try:
        return Value(name.strip(), TensorType.parse(kind))
    except VerifyError as error:
        raise VerifyError(f"{where}: {error.message}") from error


def _split_typed(text: str, where: str) -> tuple[Value, ...]:
    parts = re.split(rf", (?={_NAME}: )", text)
    return tuple(_typed(p, where) for p in parts)


def parse_graph(text: str) -> Graph:
    """Parse what `print_graph` wrote; raises VerifyError naming the line."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != HEADER:
        raise VerifyError(f"line 1: expected {HEADER!r}", "is this a textual llmc IR file?")
    inputs: list[Value] = []
    params: list[Value] = []
    constants: dict[str, tuple[float | int, ...]] = {}
    nodes: list[Node] = []
    known: dict[str, Value] = {}

    def lookup(name: str, where: str) -> Value:
        if name not in known:
            raise VerifyError(f"{where}: {name} is used before it is defined")
        return known[name]

    for number, raw in enumerate(lines[1:], 2):
        line, where = raw.strip(), f"line {number}"
        if not line or line.startswith("//"):
            continue
        if line.startswith("return "):
            return Graph(
                tuple(inputs),
                tuple(params),
                tuple(nodes),
                tuple(lookup(n.strip(), where) for n in line[7:].split(",")),
                constants,
            )
        if line.startswith("input "):
            inputs.append(_typed(line[6:], where))
            known[inputs[-1].name] = inputs[-1]
        elif line.startswith("param "):
            params.append(_typed(line[6:], where))
            known[params[-1].name] = params[-1]
        elif line.startswith("const "):
            head, _, values = line[6:].partition(" = ")
            value = _typed(head, where)
            params.append(value)
            known[value.name] = value
            constants[value.name] = tuple(_literal(values, where))
        else:
            match = _NODE.fullmatch(line)
            if match is None:
                raise VerifyError(f"{where}: not a node: {line[:120]!r}")
            outputs = _split_typed(match[1], where)
            args = tuple(lookup(a.strip(), where) for a in match[3].split(",") if a.strip())
            attributes = _attributes(match[4] or "", where)
            try:
                op = make_op(match[2], attributes)
            except (VerifyError, TypeError) as error:
                raise VerifyError(f"{where}: {error}") from error
            for out in outputs:
                if out.name in known:
                    raise VerifyError(f"{where}: {out.name} is defined twice")
                known[out.name] = out
            nodes.append(Node(op, args, outputs, match[5] or ""))
    raise VerifyError("the text ends without a `return` line")


def _literal(text: str, where: str) -> list[float | int]:
    try:
        items = text.strip()[1:-1].split(",")
        return [_number(i.strip()) for i in items if i.strip()]
    except (ValueError, SyntaxError) as error:
        raise VerifyError(f"{where}: not a list of numbers: {text[:80]!r}") from error


def _number(text: str) -> float | int:
    if text in ("inf", "-inf", "nan"):
        return float(text)
    value = ast.literal_eval(text)
    if not isinstance(value, int | float):
        raise ValueError(text)
    return value


def _attributes(text: str, where: str) -> dict[str, object]:
    if not text:
        return {}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        names = [str(k.arg) for k in call.keywords]
        if len(set(names)) != len(names):
            raise ValueError("an attribute is given twice")
        return {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise VerifyError(f"{where}: bad attributes {{{text[:80]}}}") from error


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Name):
        return -float(node.operand.id)
    if isinstance(node, ast.Tuple):
        return tuple(_value(e) for e in node.elts)
    return ast.literal_eval(node)
