"""llmc eval: perplexity, divergence from the original, and teacher-forced logits."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ..errors import GateFailed, InputError, UsageError, nearest
from .main import emit
from .options import as_json, debug, machine

KEYS = ("perplexity", "nll", "tokens", "windows", "kl_mean", "kl_median", "kl_p99", "kl_max", "top1")
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne}


@click.command(
    "eval", epilog="Example: llmc eval smollm2.llmc --text notes.txt --reference ./SmolLM2-135M --fail-if 'kl_mean>0.05'"
)
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--text", metavar="FILE", help="Text to judge on.")
@click.option("--window", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens in a window.")
@click.option("--windows", type=click.IntRange(min=1), help="Windows at most.")
@click.option("--reference", metavar="SRC", help="The original checkpoint: adds KL(original‖artifact) and top-1 agreement.")
@click.option(
    "--fail-if", multiple=True, metavar="'KEY OP NUMBER'", help="Exit 1 when this holds, such as 'kl_mean>0.05'; repeatable."
)
@click.option("--input-ids", metavar="IDS.safetensors", help="input_ids [S,T] int64 to run, teacher-forced.")
@click.option("--logits-out", metavar="OUT.safetensors", help="Where to write logits [S,T,V] float32.")
@click.option("--chunk", type=click.IntRange(min=1), help="Tokens a sequence is given per step.")
@click.option(
    "--schedule-seed", type=click.IntRange(0, 2**63 - 1), help="Random chunks, mixed batches, preemptions and prefix hits."
)
@machine
@as_json
@debug
def command(
    artifact: str,
    text: str | None,
    window: int,
    windows: int | None,
    reference: str | None,
    fail_if: tuple[str, ...],
    input_ids: str | None,
    logits_out: str | None,
    chunk: int | None,
    schedule_seed: int | None,
    threads: int | None,
    target: str,
    isa: str,
    portable: bool,
    as_json: bool,
) -> None:
    """Judge an artifact by the compiled kernels: perplexity on a text, KL divergence from the original, or raw logits."""
    from ..runtime.api import load

    gates = [_gate(g) for g in fail_if]
    if (text is None) == (input_ids is None):
        raise UsageError("give --text FILE, or --input-ids with --logits-out")
    if input_ids is not None and logits_out is None:
        raise UsageError("--input-ids needs --logits-out")
    other = ("logits_out", "chunk", "schedule_seed") if text is not None else ("window", "windows", "reference", "fail_if")
    given = click.get_current_context()
    for name in other:
        if given.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect with {'--text' if text is not None else '--input-ids'}", "leave it out"
            )
    if any(key.startswith(("kl", "top1")) for key, _, _ in gates) and reference is None:
        raise UsageError("--fail-if on a divergence needs --reference SRC")
    with load(artifact, threads=threads, target=target, isa=isa, portable=portable, max_batch=16, max_rows=256) as model:
        if input_ids is not None:
            assert logits_out is not None
            shape = _write_logits(model, input_ids, logits_out, chunk, schedule_seed)
            if as_json:
                emit({"logits": logits_out, "shape": shape})
            else:
                click.echo(f"{logits_out}: logits {shape}")
            return
        assert text is not None
        result = _judge(model, text, window, windows, reference, quiet=as_json)
    failed = [f"{k} {symbol} {n}" for k, symbol, n in gates if not math.isfinite(result[k]) or COMPARISONS[symbol](result[k], n)]
    if as_json and not failed:
        emit(result)
    elif not as_json:
        for key, value in result.items():
            click.echo(f"{key:12} {value:.6g}" if isinstance(value, float) else f"{key:12} {value}")
    if failed:
        raise GateFailed(f"the gate is not met: {'; '.join(failed)} ({', '.join(f'{k} {v:.5g}' for k, v in result.items())})")


def _gate(text: str) -> tuple[str, str, float]:
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*([-+.\deE]+)\s*", text)
    if match is None:
        raise UsageError(f"--fail-if {text!r} is not 'KEY OP NUMBER'", "write it as 'kl_mean>0.05'")
    if match[1] not in KEYS:
        raise UsageError(f"--fail-if: unknown key {match[1]!r}", nearest(match[1], KEYS))
    try:
        return match[1], match[2], float(match[3])
    except ValueError as error:
        raise UsageError(f"--fail-if: {match[3]!r} is not a number") from error


def _progress(items: list[Any], what: str, quiet: bool) -> Iterable[int]:
    try:
        from tqdm import trange
    except ModuleNotFoundError:
        return range(len(items))
    return trange(len(items), desc=what, file=sys.stderr, disable=True if quiet else None, leave=False)


def _judge(model: Any, text: str, window: int, limit: int | None, reference: str | None, *, quiet: bool) -> dict[str, Any]:
    from ..runtime.evaluate import perplexity, windows

    try:
        content = Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} cannot be read as UTF-8 text: {error}") from error
    cut = windows(model, content, window, limit)
    if reference is None:
        return dict(perplexity(model, cut, _progress(cut, "windows", quiet)))
    return _compare(model, cut, reference, quiet=quiet)


def _compare(model: Any, cut: list[Any], reference: str, *, quiet: bool) -> dict[str, Any]:
    """Perplexity and divergence together: each window is run by the artifact and by the original."""
    import numpy as np

    from ..conformance import divergence, log_softmax
    from ..pipeline import reference_logits

    original = reference_logits(reference, int(model.artifact.manifest["model"]["context"]))
    kls, agree, total, count = [], 0, 0.0, 0
    for i in _progress(cut, "windows", quiet):
        ids = cut[i].ids.tolist()
        mine, theirs = model.logits([ids])[0][:-1], original(ids)[:-1]
        if mine.shape != theirs.shape:
            raise InputError(
                f"{reference} has {theirs.shape[1]} tokens in its vocabulary, the artifact {mine.shape[1]}",
                "give the checkpoint that the artifact was compiled from",
            )
        kls.append(divergence(theirs, mine))
        agree += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        scores = log_softmax(mine.astype(np.float64))
        total -= float(scores[np.arange(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    kl = np.concatenate(kls)
    nll = total / count
    return {
        "perplexity": math.exp(min(nll, 700.0)),
        "nll": nll,
        "tokens": count,
        "windows": len(cut),
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
        "top1": agree / count,
    }


def _write_logits(model: Any, path: str, out: str, chunk: int | None, seed: int | None) -> list[int]:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    from ..runtime.artifact import replacing

    try:
        ids = load_file(path).get("input_ids")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}", "it must be a safetensors file") from error
    if ids is None or ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{path} must hold input_ids [S,T] int64")
    if ids.shape[1] > model.config.context:
        raise InputError(
            f"{path}: sequences of {ids.shape[1]} tokens are longer than the {model.config.context} positions served"
        )
    logits = np.stack(model.logits(ids.tolist(), chunk=chunk, schedule_seed=seed))
    with replacing(Path(out)) as stream:
        stream.write(save({"logits": logits}))
    return list(logits.shape)
