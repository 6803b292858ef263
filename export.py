"""Exporting: a checkpoint that other tools read, with the weights as the artifact would compute with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compile_options import CompileOptions, resolve, schemes
from .errors import UnsupportedError, UsageError, nearest
from .pipeline import Progress, chosen_codes, front_end, parameters

if TYPE_CHECKING:
    import torch

    from .compiler.ir.graph import Graph, Value
    from .quant.algorithms.rtn import Codes
    from .quant.scheme import Scheme

FORMATS = ("dense", "compressed-tensors", "gptq", "awq", "gguf")
VIEWS = ("codes", "scales", "zeros")


def export(source: str, out: Path, form: str, *, quiet: bool = True, **options: Any) -> int:
    """Write the folder `out` in one of FORMATS; returns the number of tensors.

    `dense` is float32 safetensors under the names that transformers' checkpoints have, `gguf` one file, model.gguf; the others
    hold codes and scales, with whatever is not quantized in the checkpoint's dtype. Raises UsageError when `out` holds
    something already, UnsupportedError for a scheme that the format has no place for.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", nearest(form, FORMATS))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder", "give a new one")
    settings = resolve(options)
    exporter = _Exporter(source, settings, Progress(quiet))
    if form == "dense":
        return exporter.dense(out)
    if form == "gguf":
        from .quant.formats.gguf_writer import write_gguf

        with exporter.progress.stage("export", f"Writing {out / 'model.gguf'}"):
            return write_gguf(out / "model.gguf", exporter.checkpoint, exporter.captured.model, *exporter.parts(keep_head=False))
    return exporter.packed(out, form)


class _Exporter:
    """One checkpoint, read and quantized."""

    def __init__(self, source: str, settings: CompileOptions, progress: Progress) -> None:
        from .quant.formats.registry import open_checkpoint

        self.settings, self.progress = settings, progress
        with progress.stage("capture", f"Reading {source}"):
            self.checkpoint = open_checkpoint(source, trust_remote_code=settings.trust_remote_code)
            dtype = self.checkpoint.dtype if settings.dtype == "auto" else settings.dtype
            self.captured, self.imported = front_end(self.checkpoint, dtype, 1, settings.trust_remote_code)
        self.params = parameters(self.checkpoint, self.captured, self.imported)
        if ":" in settings.algorithm:
            raise UnsupportedError(
                f"{settings.algorithm} writes a checkpoint of its own format", "use llmc compile, or the tool itself"
            )
        if {"rotate", "hadamard"} & set(settings.algorithm.split("+")):
            raise UnsupportedError(
                "turned weights do not fit the model that other tools build", "use an --algorithm without rotate and hadamard"
            )

    def parts(self, *, keep_head: bool) -> tuple[dict[str, torch.Tensor], dict[str, tuple[Scheme, Codes]]]:
        """Plain weights, and quantized ones [N, K], by the names that checkpoints have. `keep_head` leaves the head and the embeddings
        as they are unless a rule names them, as other tools do."""
        import torch
        from transformers.core_model_loading import revert_weight_conversion

        from .quant.algorithms.rtn import Codes

        found = {name: (scheme, codes, across) for name, scheme, codes, across in self._quantized(keep_head)}
        names = [p.name[1:] for p in self.imported.graph.params if p.name[1:] not in self.imported.buffers]
        views: dict[str, dict[str, torch.Tensor]] = {v: {} for v in (*VIEWS, "number")}
        plain: dict[str, torch.Tensor] = {}
        numbers = sorted({str(scheme) for scheme, _, _ in found.values()})
        by_text = {str(scheme): scheme for scheme, _, _ in found.values()}
        floats = self._floats()
        for name in self.progress.each(names, "tensors"):
            if name not in found:
                value = self.params(name)
                plain[name] = value.to(floats[name]) if name in floats else value
                continue
            scheme, codes, across = found[name]
            for view in VIEWS:
                if view == "zeros" and codes[0].zeros is None:
                    continue
                spread = _stack([_spread(c, view, scheme) for c in codes])
                views[view][name] = spread.transpose(-1, -2) if across else spread
            views["number"][name] = torch.full_like(views["codes"][name], float(numbers.index(str(scheme))))
        revert = lambda tensors: revert_weight_conversion(self.captured.model, tensors)  # noqa: E731
        moved = {view: revert(tensors) if tensors else {} for view, tensors in views.items()}
        across_names = {name for name, (_, codes, across) in found.items() if across and len(codes) == 1}
        quantized = {}
        for name, codes in moved["codes"].items():
            if codes.ndim != 2:
                raise UnsupportedError(
                    f"{name} holds {codes.shape[0]} experts in one tensor, which no other tool's format does",
                    "use --format dense",
                )
            scheme = by_text[numbers[int(moved["number"][name].flatten()[0])]]
            turn = (lambda t: t.T.contiguous()) if name in across_names else (lambda t: t.contiguous())
            size = scheme.group or codes.shape[1 if name not in across_names else 0]
            zeros = turn(moved["zeros"][name])[:, ::size].contiguous() if name in moved["zeros"] else None
            quantized[name] = (
                scheme,
                Codes(turn(codes).to(torch.uint8), turn(moved["scales"][name])[:, ::size].contiguous(), zeros),
            )
        return revert(plain), quantized

    def _quantized(self, keep_head: bool) -> Iterable[tuple[str, Scheme, list[Codes], bool]]:
        """Parameter, scheme, codes (one for each expert), and whether the parameter has K before N."""
        from .passes.order import raising_passes
        from .passes.quantize import Quantize, is_head, is_named, root_param, weight_nodes, weights_of
        from .quant.algorithms.rtn import quantize

        graph = self.imported.graph
        for step in raising_passes(self.imported.buffers):
            graph = step.run(graph)
        default, rules = schemes(self.settings)
        plan = Quantize(default, rules).plan(graph)
        chosen = chosen_codes(self.settings, self.checkpoint, self.imported, self.params, self.progress)
        seen = set()
        for node, weight in weight_nodes(graph):
            scheme = plan.get(node.outputs[0].name)
            named = is_named(node, weight, graph, rules)
            if scheme is None or (keep_head and not named and (node.op.name == "embedding" or is_head(node))):
                continue
            for value in weights_of(node):
                name = root_param(value, graph)[1:]
                if name in seen or not scheme.is_coded:
                    continue
                seen.add(name)
                across = _orientation(graph, value, name)
                if chosen is not None and value.name in chosen.codes:
                    yield name, scheme, chosen.codes[value.name], across
                    continue
                tensor = self.params(name)
                tensor = tensor.transpose(-1, -2) if across else tensor
                yield name, scheme, [quantize(m, scheme) for m in (tensor if tensor.ndim == 3 else [tensor])], across

    def dense(self, out: Path) -> int:
        import torch
        from transformers.core_model_loading import revert_weight_conversion

        from .compiler.checkpoint_writer import save_checkpoint

        tensors = {}
        found = {name: (scheme, codes, across) for name, scheme, codes, across in self._quantized(keep_head=False)}
        floats = self._floats()
        names = [p.name[1:] for p in self.imported.graph.params if p.name[1:] not in self.imported.buffers]
        for name in self.progress.each(names, "tensors"):
            if name in found:
                scheme, codes, across = found[name]
                value = _stack([c.dequantize(scheme) for c in codes])
                value = value.transpose(-1, -2) if across else value
            else:
                value = self.params(name)
                value = value.to(floats[name]) if name in floats else value
            tensors[name] = value.float().contiguous()
        tensors = revert_weight_conversion(self.captured.model, tensors)
        return save_checkpoint(out, self.checkpoint, tensors, torch.float32)

    def _floats(self) -> dict[str, torch.dtype]:
        """The dtype of each parameter whose scheme is a floating-point one."""
        from .compiler.ir.reference import TORCH_DTYPE
        from .passes.quantize import Quantize, root_param, weight_nodes

        graph = self.imported.graph
        plan = Quantize(*schemes(self.settings)).plan(graph)
        chosen = ((root_param(w, graph)[1:], plan.get(node.outputs[0].name)) for node, w in weight_nodes(graph))
        return {name: TORCH_DTYPE[s.kind] for name, s in chosen if s is not None and not s.is_coded}

    def packed(self, out: Path, form: str) -> int:
        import torch

        from .compiler.checkpoint_writer import save_checkpoint
        from .compiler.ir.reference import TORCH_DTYPE
        from .quant.formats.registry import WRITERS

        dtype = TORCH_DTYPE[self.checkpoint.dtype]
        writer = WRITERS[form](dtype)
        plain, quantized = self.parts(keep_head=True)
        if not quantized:
            raise UsageError(
                f"nothing is quantized: --format {form} has nothing to hold", "give --quant, such as --quant int4:g128"
            )
        tensors = {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in plain.items()}
        found: dict[str, Scheme] = {}
        for name, (scheme, codes) in quantized.items():
            module = name.removesuffix(".weight")
            found[module] = scheme
            tensors.update({f"{module}.{end}": t.contiguous() for end, t in writer.parts(codes, scheme).items()})
        modules = dict(self.captured.model.named_modules())
        left = sorted(
            n.removesuffix(".weight")
            for n in plain
            if n.endswith(".weight") and isinstance(modules.get(n.removesuffix(".weight")), torch.nn.Linear)
        )
        if "lm_head" not in left and "lm_head" not in found and isinstance(modules.get("lm_head"), torch.nn.Linear):
            left.append("lm_head")
        return save_checkpoint(out, self.checkpoint, tensors, dtype, writer.config(found, left))


def _orientation(graph: Graph, value: Value, name: str) -> bool:
    """Whether the parameter lies with K before N. Raises UnsupportedError where the weight is not the parameter itself."""
    producers = graph.producers()
    across = False
    while value.name in producers:
        node = producers[value.name]
        if node.op.name == "permute" and node.inputs[0].type.shape[-1] == value.type.shape[-2]:
            across = not across
        elif node.op.name != "cast":
            raise UnsupportedError(f"{name} is reshaped before it is used", "leave that module out with --scheme GLOB=bf16")
        value = node.inputs[0]
    return across


def _spread(codes: Codes, view: str, scheme: Scheme) -> torch.Tensor:
    """codes, scales or zeros with one entry a weight."""
    k = codes.codes.shape[1]
    found = getattr(codes, view).float()
    return found if view == "codes" else found.repeat_interleave(scheme.group or k, 1)[:, :k]


def _stack(matrices: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(matrices) if len(matrices) > 1 else matrices[0]
