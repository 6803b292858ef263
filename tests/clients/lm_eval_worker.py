"""Run by the interpreter that has lm-evaluation-harness: judge what JOB (json) describes by both backends, and write OUT (json).

Floats survive json to the bit.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def answers(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What a backend says to the same Instances."""
    return {
        "loglikelihood": model.loglikelihood(instances("loglikelihood", [tuple(p) for p in job["pairs"]])),
        "rolling": model.loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in job["texts"]])),
        "generated": model.generate_until(instances("generate_until", [tuple(g) for g in job["generate"]])),
    }


def task(model: Any, job: dict[str, Any], *, chat: bool = False) -> dict[str, Any]:
    """One whole task: its figures, and each question's answers with their log-likelihoods."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = job["task"]
    manager = TaskManager(include_path=job["tasks"], include_defaults=False)
    found = simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, apply_chat_template=chat)
    figures = {k: v for k, v in found["results"][name].items() if isinstance(v, float)}
    samples = sorted(found["samples"][name], key=lambda s: s["doc_id"])
    return {"figures": figures, "samples": [s["filtered_resps"] for s in samples]}


def main(job_file: str, out: str) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    job = json.loads(Path(job_file).read_text())

    def served(batch: int, concurrent: int, **changes: Any) -> Any:
        return LocalCompletionsAPI(**{**job["api"], **changes}, batch_size=batch, num_concurrent=concurrent, max_retries=1)

    original = HFLM(**job["hf"], batch_size=4)
    made: dict[str, Any] = {"hf": {**answers(original, job), "task": task(original, job)}, "api": {}}
    for batch, concurrent in itertools.product((1, 4), (1, 4)):
        model = served(batch, concurrent)
        made["api"][f"{batch},{concurrent}"] = {**answers(model, job), "task": task(model, job)}
    made["chat"] = {"hf": task(original, job, chat=True), "api": task(served(4, 4, add_bos_token=False), job, chat=True)}
    Path(out).write_text(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
