"""Marlin's layout, against its own packer (IST-DASLab/marlin, `Layer.pack`), written out here with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llmc.errors import CheckpointError
from llmc.quant.formats.awq import Awq
from llmc.quant.formats.gptq import Gptq


def pack(codes: np.ndarray, scales: np.ndarray, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """codes [K, N] of 0 … 15 and scales [G, N] as the kernel's authors store them."""
    perm = []
    for i in range(32):
        col = i // 4
        for block in (0, 1):
            for row in (2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1):
                perm.append(16 * row + col + 8 * block)
    perm = np.concatenate([np.array(perm).reshape(32, 8) + 256 * j for j in range(4)], 1).reshape(32, 4, 8)
    order = perm[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    k, n = codes.shape
    s = scales.reshape(-1, n)
    if group != k:
        s = s.reshape(-1, 64)[:, [i + 8 * j for i in range(8) for j in range(8)]]
    else:
        s = s.reshape(-1, 32)[:, [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]]
    w = codes.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(k // 16, n * 16)
    res = w.reshape(-1, 1024)[:, order].reshape(w.shape).astype(np.uint32)
    q = np.zeros((k // 16, n * 2), np.uint32)
    for i in range(8):
        q |= res[:, i::8] << np.uint32(4 * i)
    return torch.from_numpy(q.astype(np.int32)), torch.from_numpy(s.reshape(-1, n).astype(np.float16))


@pytest.mark.parametrize("group", [32, 128, 256])
def test_codes_and_scales_come_back(group, random):
    k, n = 256, 128
    codes, scales = random.integers(0, 16, (k, n)), random.random((k // group, n)).astype(np.float16)
    words, stored_scales = pack(codes, scales, group)
    wanted = (codes.astype(np.float32) - 8) * scales.astype(np.float32).repeat(group, 0)
    for form in (
        Awq({"quant_method": "awq", "version": "marlin", "bits": 4, "group_size": group}, {}),
        Gptq({"quant_method": "gptq", "checkpoint_format": "marlin", "bits": 4}, {}),
    ):
        stored = form.read("w", {"qweight": lambda: words, "scales": lambda: stored_scales})
        assert np.array_equal(stored.dense().numpy(), wanted.T)
        assert np.array_equal(stored.codes.numpy(), codes.T) and stored.scheme.group == (group if group != k else 0)
    by_autogptq = Gptq({"quant_method": "gptq", "is_marlin_format": True, "bits": 4}, {})
    assert np.array_equal(by_autogptq.read("w", {"B": lambda: words, "s": lambda: stored_scales}).dense().numpy(), wanted.T)


def test_what_does_not_fit_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="marlin"):
        Gptq({"checkpoint_format": "marlin"}, {}).read(
            "w", {"qweight": lambda: torch.zeros(4, 128, dtype=torch.int32), "scales": lambda: torch.zeros(1, 32)}
        )
