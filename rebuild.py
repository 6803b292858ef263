"""Rebuilding: render and compile an artifact's kernels again from its own IR, and compare bytes."""

from __future__ import annotations

from .errors import ArtifactError, EnvironmentLacks, LlmcError
from .runtime.artifact import Artifact, Check
from .version import VERSION

FOLDER = "kernels/"
FIRST = "kernels/first/"


def check_rebuild(artifact: Artifact) -> list[Check]:
    """One check for the sources and one a target. Raises EnvironmentLacks when this llmc or its compilers are not those that made it."""
    from .codegen.emit import emit, expand_targets
    from .codegen.tuning import parse_tuning
    from .compiler.ir.text import parse_graph
    from .compiler.ir.verify import verify

    manifest = artifact.manifest
    if manifest["llmc"] != VERSION:
        raise EnvironmentLacks(
            f"the artifact was made by llmc {manifest['llmc']}, this is {VERSION}", f"rebuild with llmc {manifest['llmc']}"
        )
    targets = expand_targets(t["name"] for t in manifest["targets"])
    _check_tools(manifest["toolchain"], "compiler" in manifest["toolchain"], bool(targets.gpus))
    tuning = manifest["recipe"].get("tuning")
    tuned = parse_tuning(tuning, f"{artifact.path.name}: its tuning") if tuning is not None else None
    try:
        graph = verify(parse_graph(artifact.read("model.ir").decode()), "reading model.ir")
        recipe = manifest["recipe"]
        layers, fast = int(recipe.get("gpu_layers", 0)), bool(recipe.get("fast_nondeterministic"))
        emitted = emit(graph, manifest["model"]["kv_dtype"], targets, tuned, layers, fast)
    except (LlmcError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{artifact.path.name}: model.ir is not valid: {error}") from error
    files, entries = emitted.build(targets, "", lambda items, what: items, use_cache=False)
    held = {name for name in artifact.members if name.startswith(FOLDER)}
    sources = {name for name in files if "/source/" in name}
    strange = sorted(held - set(files))
    same = not strange and sources <= held and all(artifact.read(name) == files[name] for name in sources)
    said = f"{strange[0]} does not follow from model.ir" if strange else "the sources do not follow from model.ir"
    checks = [Check("rebuild sources", same, "the sources follow from model.ir" if same else said)]
    folders = {entry["isa"]: entry["member"].rpartition("/")[0] + "/" for entry in entries}
    folders |= {"the first layers": FIRST} if any(name.startswith(FIRST) for name in files) else {}
    for what, folder in folders.items():
        made = [name for name in files if name.startswith(folder)]
        equal = all(artifact.has(name) and artifact.read(name) == files[name] for name in made)
        checks.append(
            Check(
                f"rebuild {what}",
                equal,
                "the kernels are what the sources say, to the byte" if equal else "the kernels differ from what the sources give",
            )
        )
    return checks


def _check_tools(made_by: dict[str, str], cpu: bool, gpu: bool) -> None:
    """Raise EnvironmentLacks when a compiler here is not the one that the artifact names."""
    from .codegen.triton.build import toolchain as triton_toolchain
    from .toolchain.c import toolchain

    compiler = made_by.get("compiler", "")
    if cpu and not compiler.startswith("ziglang"):
        raise EnvironmentLacks(f"the kernels were compiled by {compiler}", "a rebuild is possible for the pinned ziglang alone")
    for wanted, here in (
        (compiler, toolchain() if cpu else ""),
        (made_by.get("triton", ""), triton_toolchain() if gpu else ""),
        (made_by.get("hip", ""), toolchain() if "hip" in made_by else ""),
    ):
        if here and here != wanted:
            raise EnvironmentLacks(
                f"the kernels were compiled by {wanted}, here is {here}", f"install {wanted.replace(' ', '==')}"
            )
