"""Rebuilding: render and compile an artifact's kernels again from its own IR, and compare bytes."""

from __future__ import annotations

from .errors import ArtifactError, EnvironmentLacks, LlmcError
from .runtime.artifact import Artifact, Check
from .version import VERSION


def check_rebuild(artifact: Artifact) -> list[Check]:
    """One check for the sources and one a level. Raises EnvironmentLacks when this llmc or its compiler is not the one that made it."""
    from .codegen.cpu.build import build, toolchain
    from .codegen.cpu.render import render
    from .compiler.ir.text import parse_graph
    from .compiler.ir.verify import verify

    manifest = artifact.manifest
    if manifest["llmc"] != VERSION:
        raise EnvironmentLacks(
            f"the artifact was made by llmc {manifest['llmc']}, this is {VERSION}", f"rebuild with llmc {manifest['llmc']}"
        )
    made_by = manifest["toolchain"]["compiler"]
    if not made_by.startswith("ziglang"):
        raise EnvironmentLacks(f"the kernels were compiled by {made_by}", "a rebuild is possible for the pinned ziglang alone")
    if toolchain() != made_by:
        raise EnvironmentLacks(
            f"the kernels were compiled by {made_by}, here is {toolchain()}", f"install {made_by.replace(' ', '==')}"
        )
    try:
        graph = verify(parse_graph(artifact.read("model.ir").decode()), "reading model.ir")
    except (LlmcError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{artifact.path.name}: model.ir is not valid: {error}") from error
    rendered = render(graph, manifest["model"]["kv_dtype"])
    same = all(
        artifact.has(f"kernels/cpu/source/{name}") and artifact.read(f"kernels/cpu/source/{name}") == text.encode()
        for name, text in rendered.sources.items()
    )
    checks = [
        Check("rebuild sources", same, "the sources follow from model.ir" if same else "the sources do not follow from model.ir")
    ]
    for target in manifest["targets"]:
        binary = build(rendered.sources, target["isa"], use_cache=False)
        equal = binary == artifact.read(target["member"])
        checks.append(
            Check(
                f"rebuild {target['isa']}",
                equal,
                "the kernels are what the sources say, to the byte" if equal else "the kernels differ from what the sources give",
            )
        )
    return checks
