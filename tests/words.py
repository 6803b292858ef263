"""4-bit codes as the GPU's kernels hold them, written out from the picture of a matrix instruction's threads."""

from __future__ import annotations

import numpy as np


def words_of(codes: np.ndarray) -> np.ndarray:
    """codes [N, K], N a multiple of 16, K of 64 → words [N / 16, K / 64, 256]. Thread 4·g + c holds outputs g and g + 8, and of 16 values of K
    those at 2c, 2c + 1, 2c + 8 and 2c + 9; a word's four codes are 16 values of K apart."""
    n, k = codes.shape
    words = np.zeros((n // 16, k // 64, 32, 2, 2, 2), np.uint16)  # thread, k / 8, output / 8, k % 2
    for g in range(8):
        for c in range(4):
            for high in range(2):
                for other in range(2):
                    for odd in range(2):
                        for q in range(4):
                            at = codes[g + 8 * other :: 16, 16 * q + 8 * high + 2 * c + odd :: 64]
                            words[:, :, 4 * g + c, high, other, odd] |= (at << (4 * q)).astype(np.uint16)
    return words.reshape(n // 16, k // 64, 256)
