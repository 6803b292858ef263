"""The text that a calibrated algorithm sees, as windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import InputError, UnsupportedError

WINDOWS, LENGTH = 128, 512


def calibration_text(path: str) -> str:
    """The text of a file, of the `text`, `prompt` or `messages` of each line of a .jsonl file, or the one that comes with llmc."""
    where = Path(path) if path else Path(__file__).parent / "data" / "calibration.txt"
    try:
        text = where.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the calibration text {where} cannot be read: {error}") from error
    if where.suffix != ".jsonl":
        return text
    parts = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else {}
            said = [str(m["content"]) for m in row.get("messages", [])]
            parts.append("\n".join([str(row[k]) for k in ("text", "prompt") if k in row] + said))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{where}: line {number} is not an object with text, prompt or messages: {error}") from error
    return "\n\n".join(parts)


def calibration_tokens(path: str, tokenizer: bytes | None, context: int, vocabulary: int) -> torch.Tensor:
    """Token ids [windows, length] of the text at `path`, `tokenizer` a tokenizer.json, ids below `vocabulary`.

    Raises InputError for text or a tokenizer that does not fit the model, UnsupportedError where there is no tokenizer.
    """
    from tokenizers import Tokenizer

    if tokenizer is None:
        raise UnsupportedError("a calibrated algorithm needs the checkpoint's tokenizer", "use --algorithm rtn")
    encoder = Tokenizer.from_str(tokenizer.decode())
    tokens = calibration_windows(
        calibration_text(path), lambda text: encoder.encode(text, add_special_tokens=False).ids, WINDOWS, min(LENGTH, context)
    )
    if tokens.numel() < 2:
        raise InputError("the calibration text is empty", "give a longer one")
    if int(tokens.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {int(tokens.max())}, the model's vocabulary ends at {vocabulary - 1}",
            "use the tokenizer that belongs to the model, or --algorithm rtn",
        )
    return tokens


def calibration_windows(text: str, encode: Callable[[str], list[int]], count: int, length: int) -> torch.Tensor:
    """[count, length] token ids, spread evenly over the text; fewer when the text is short."""
    ids = torch.tensor(encode(text), dtype=torch.int64)
    whole = ids.numel() // length
    if whole == 0:
        return ids[None] if ids.numel() else torch.zeros(0, 0, dtype=torch.int64)
    windows = ids[: whole * length].reshape(whole, length)
    step = max(whole // count, 1)
    return windows[::step][:count].contiguous()
