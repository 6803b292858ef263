"""llmc compile: a checkpoint to one artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import GateFailed, RecipeError, UsageError, nearest
from ..runtime.sizes import show_size
from .main import emit
from .options import as_json, compiling, debug

PATHS = ("source", "out", "dump_ir", "calibration", "plot", "tuning", "work", "tool_python")


@click.command("compile", epilog="Example: llmc compile ./SmolLM2-135M -o smollm2.llmc --quant int4 --max-kl 0.6")
@click.argument("source", required=False, metavar="SRC")
@click.option("-o", "--out", metavar="OUT.llmc", help="The artifact to write.")
@compiling
@click.option(
    "--target",
    multiple=True,
    metavar="NAME",
    help="cpu (x86-64 levels v3, v4 and amx), cpu:native, cpu:x86-64-v3, cpu:aarch64, cuda:sm_90, rocm:gfx942, …; repeatable.  [default: cpu]",
)
@click.option(
    "--weights",
    default="all",
    show_default=True,
    metavar="all|none",
    help="none makes a plan: kernels and memory plan without weights.",
)
@click.option("--cc", default="", metavar="COMMAND", help="Another C compiler than the pinned zig, such as gcc or clang.")
@click.option("--max-kl", type=float, metavar="X", help="Fail (exit 1) when the mean KL divergence from the original is larger.")
@click.option("--strict", is_flag=True, help="Refuse (exit 3) what would run on generic kernels.")
@click.option("--dump-ir", metavar="DIR", help="Write the IR after each pass, one file a pass.")
@click.option("--recipe", metavar="FILE.yaml", help="Read options from a recipe; the command line wins.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--target-size", default="", metavar="SIZE", help="With --quant auto: the size to meet.")
@click.option("--plot", default="", metavar="FILE.svg", help="With --quant auto: draw quality against size.")
@click.option(
    "--gpu-layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="With a GPU target: the last N layers and the head run on the GPU, those before on the CPU.  [default: all on the GPU]",
)
@click.option(
    "--fast-nondeterministic",
    is_flag=True,
    help="On rocm targets: kernels for few rows whose bits depend on what else is in the batch.",
)
@click.option("--tuning", default="", metavar="TABLE.json", help="A table by llmc tune: how much kernels take at a time.")
@click.option("--lora", multiple=True, metavar="DIR", help="Merge a LoRA adapter (PEFT's folder), DIR or DIR=SCALE; repeatable.")
@as_json
@debug
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, recipe: str | None, **options: Any) -> None:
    """Compile a checkpoint to one artifact.

    SRC is a Hugging Face folder, a hub id (org/model) or a .gguf file. The artifact holds the packed weights, the kernels with
    their sources, the tokenizer, a memory plan and the result of a check against the original model.
    """
    if recipe is not None:
        given = {k for k in options if ctx.get_parameter_source(k) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)}
        options.update({k: v for k, v in _read_recipe(recipe, set(options)).items() if k not in given})
    source, out = options.pop("source"), options.pop("out")
    if not source:
        raise UsageError("SRC is missing", "llmc compile SRC -o OUT.llmc")
    if not out:
        raise UsageError("-o OUT.llmc is missing", "llmc compile SRC -o OUT.llmc")
    options["gpu_layers"] = options["gpu_layers"] or 0
    from ..pipeline import compile as run

    try:
        report = run(source, out, quiet=as_json, **options)
    except GateFailed:
        raise
    if as_json:
        emit(report.to_json())
        return
    check = report.conformance
    click.echo(f"{report.artifact}: {show_size(report.bytes)}, {', '.join(report.targets)}")
    if "skipped" in check:
        click.echo(f"  check: skipped: {check['skipped']}")
    else:
        click.echo(f"  check: mean KL {check['kl_mean']}, top-1 {100 * check['top1']:.1f} %, largest error {check['max_abs']}")
    for glob, scheme in report.quant.items():
        click.echo(f"  {glob}: {scheme}")
    if report.fallbacks:
        click.echo(f"  {len(report.fallbacks)} nodes run on generic kernels (llmc explain names them)")
    for note in report.notes:
        click.echo(f"  note: {note}")
    click.echo("  " + ", ".join(f"{k} {v:.1f} s" for k, v in report.seconds.items()))


def _read_recipe(path: str, known: set[str]) -> dict[str, Any]:
    """A recipe's options; paths in it are relative to its folder. Raises RecipeError, or UsageError for an unknown key."""
    import jsonschema
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} is not a mapping of options", "write lines such as `quant: int4`")
    for key in recipe:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}", nearest(str(key), sorted(known)))
    try:
        jsonschema.validate(recipe, SCHEMA)
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path))
        raise RecipeError(f"{path}: {where}: {error.message}") from error
    folder = Path(path).resolve().parent
    for key in PATHS:
        if key in recipe:
            inside = folder / str(recipe[key])
            hub = (
                key == "source"
                and not inside.exists()
                and str(recipe[key]).count("/") == 1
                and not str(recipe[key]).startswith(".")
            )
            recipe[key] = recipe[key] if hub else str(inside)
    if "lora" in recipe:
        adapters = recipe["lora"] if isinstance(recipe["lora"], list) else [recipe["lora"]]
        recipe["lora"] = [str(folder / adapter) for adapter in adapters]
    return recipe


_TEXT, _FLAG, _LIST = {"type": "string"}, {"type": "boolean"}, {"type": ["array", "string"], "items": {"type": "string"}}
SCHEMA = {
    "type": "object",
    "properties": {
        **dict.fromkeys(
            (
                "source",
                "out",
                "quant",
                "activations",
                "algorithm",
                "dtype",
                "kv_dtype",
                "weights",
                "cc",
                "dump_ir",
                "calibration",
                "plot",
                "tuning",
                "work",
                "tool_python",
            ),
            _TEXT,
        ),
        **dict.fromkeys(("asymmetric", "fast_nondeterministic", "offload", "strict", "force", "trust_remote_code"), _FLAG),
        **dict.fromkeys(("scheme", "target", "lora"), _LIST),
        **{key: {"type": "integer", "minimum": 0} for key in ("context", "group_size", "gpu_layers")},
        "max_kl": {"type": "number"},
        "target_size": {"type": ["string", "integer"]},
    },
}
