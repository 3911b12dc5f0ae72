"""What the compiled loops read: tables of jobs and parts, and numbers that stand for words."""

import numpy as np
import torch

FLOAT32, BFLOAT16, FLOAT16 = range(3)
EVERYTHING, WINDOW, BERNOULLI, SCORED, NOTHING = range(5)
GENERAL, WHOLE, LARGE, BETWEEN, RANDOM, RANKED = range(6)

DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}

JOB = np.dtype(
    [
        ("out", np.int64),  # address of the output tensor
        ("out_code", np.int64),  # its dtype
        ("base", np.int64),  # address of the base, for task vectors
        ("base_code", np.int64),
        ("numel", np.int64),
        ("scale", np.float32),
        ("divisor", np.float32),  # of sums without consensus
        ("consensus", np.int64),
        ("normalize", np.int64),
        ("loop", np.int64),  # which loop may take it: GENERAL, ... RANKED
    ]
)
"""One tensor to write."""

PART = np.dtype(
    [
        ("address", np.int64),  # of the parent's tensor
        ("code", np.int64),  # its dtype
        ("kind", np.int64),  # of the selection: EVERYTHING, ... NOTHING
        ("weight", np.float32),  # what it counts
        ("factor", np.float32),  # what its kept elements are multiplied with
        ("upper", np.float32),  # threshold of a window's first cut
        ("lower", np.float32),  # and of its last
        ("first", np.int64),  # index of a window's first cut, or -1 for none
        ("last", np.int64),  # and of its last
        ("limit", np.int64),  # of random numbers or scores, of 65536
        ("source", np.int64),  # key of random numbers, or address of scores
        ("half", np.int64),  # which half of the random numbers
    ]
)
"""One parent of it."""
