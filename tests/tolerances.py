"""How far a result may lie from its reference, in one table; a test takes its bound from here and never loosens it.

`LOGITS[dtype, scheme]` bounds max|logits − reference| of a tiny model (two layers, K ≤ 128) as a share of max(1, max|reference|).
`PRODUCT[scheme's activations]` bounds one product's error as a share of Σ|x·w|, the size of what is summed.
"""

LOGITS = {
    # ~10 products deep, each off by at most K·2⁻²⁴ ≈ 6e-6 of its terms, errors of random sign: 3 · 6e-6.
    ("f32", "none"): 2e-5,
    # x is rounded to 11 bits before each of ~10 products: 2⁻¹² each, in random directions, doubled for the tails.
    ("f16", "none"): 2e-3,
    # x is rounded to 8 bits before each of ~10 products: 2⁻⁹ · √10 in random directions, four times that for the tails.
    ("bf16", "none"): 2.5e-2,
    # Only keys and values are rounded: half of a 1/127 step of the largest of a block, through two layers, tails included.
    ("f32", "kv:int8"): 1.5e-2,
    # Only keys and values are rounded, to 11 bits: 2⁻¹² · √4 roundings, tails included.
    ("f32", "kv:fp8"): 6e-2,
    ("f32", "kv:int16"): 3e-3,
    ("f32", "kv:f16"): 1.5e-3,
}

PRODUCT = {
    # K ≤ 1152 additions of float32 in 32 chains: (K/32 + 8) · 2⁻²⁴ of the terms; x is rounded in the reference exactly as in the kernel.
    "": 4e-6,
    # A norm computed in float32 may tip a tie of the rounding to bfloat16: one of K ≥ 33 values off by 2⁻⁸ of up to 3σ.
    "norm/bf16": 1.5e-3,
    # The same with codes of 1/127 of the largest: one of K ≥ 33 values off by one code.
    "norm/int8": 3e-3,
    # Two dependent products (in, then out of an expert): the inner result, off by the bound of one, passes the outer.
    "experts": 1e-5,
    "experts/bf16": 1.5e-3,
}

# Units in the last place against float64, the measured bound of each polynomial rounded up; absolute error where a zero is crossed.
ULP = {"exp": 2, "log": 3, "sigmoid": 4, "tanh": 4, "erf": 8, "silu": 4, "quick_gelu": 8, "softplus": 4, "expm1": 6, "log1p": 4}

# Root mean square of a position's logits against another tool's, as a share of the logits' standard deviation. The median
# position lies within the bound, every one within three times it (in three of four with experts: a rounding that tips a
# router's tie sends a token elsewhere).
CHECKPOINT = {
    # bfloat16 activations and cache in ~15 products, 2⁻⁹ each in random directions, doubled; some tools also round the weights.
    "weights": 0.02,
    # A tool computes in bfloat16 throughout: where its x and ours round to different codes, they differ by a whole code. The
    # noise of two independent roundings to 8 bits is √2 of one, which is 0.035 to 0.08 here (the tools' own logits against
    # those without rounded activations).
    "8-bit activations": 0.13,
    # The same for 4 bits: 0.35 to 0.45.
    "4-bit activations": 0.45,
}
