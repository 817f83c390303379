"""What a call means where the formula alone does not say: asked of the kernels and of the reference alike."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import reference
from fastkl.registry import OPERATIONS, Operation

INF, NAN, LN2 = math.inf, math.nan, math.log(2)
DENORMAL = 1e-45  # the least float32; in float64 just a small number
T, F = True, False

both = pytest.mark.parametrize("module", [fk, reference], ids=["kernels", "reference"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)

# Function, what it is given, keywords, what it gives. One row each.
EDGES: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("logsumexp", ([-INF, -INF],), {}, -INF),
    ("logsumexp", ([0.0, INF],), {}, INF),
    ("logsumexp", ([-INF, INF],), {}, INF),
    ("logsumexp", ([0.0, NAN],), {}, NAN),
    ("logsumexp", ([INF, NAN],), {}, NAN),
    ("logsumexp", ([NAN, INF],), {}, NAN),
    ("logsumexp", ([-INF, NAN],), {}, NAN),
    ("logsumexp", ([3e38, 3e38],), {}, 3e38),
    ("logsumexp", ([-3e38, 3e38],), {}, 3e38),
    ("logsumexp", ([-3e38, -3e38],), {}, -3e38),
    ("logsumexp", ([0.0, -INF],), {}, 0.0),
    ("logsumexp", ([NAN, 0.0],), {"where": [F, T]}, 0.0),
    ("logsumexp", ([INF, 0.0],), {"where": [F, T]}, 0.0),
    ("logsumexp", ([0.0, NAN],), {"where": [F, F]}, -INF),
    ("logsumexp", ([INF, 0.0],), {"b": [0.0, 1.0]}, 0.0),
    ("logsumexp", ([NAN, 0.0],), {"b": [0.0, 1.0]}, 0.0),
    ("logsumexp", ([NAN, 0.0],), {"b": [-0.0, 1.0]}, 0.0),
    ("logsumexp", ([NAN, INF],), {"b": [0.0, 0.0]}, -INF),
    ("logsumexp", ([0.0, 0.0],), {"b": [1.0, NAN]}, NAN),
    ("logsumexp", ([0.0, 0.0],), {"b": [1.0, NAN], "where": [T, F]}, 0.0),
    ("logsumexp", ([0.0, 1.0],), {"b": [-2.0, 0.0]}, NAN),
    ("logsumexp", ([0.0, 1.0],), {"b": [-2.0, 0.0], "return_sign": True}, (LN2, -1.0)),
    ("logsumexp", ([0.0, 0.0],), {"b": [3.0, -1.0], "return_sign": True}, (LN2, 1.0)),
    ("logsumexp", ([0.0, 0.0],), {"b": [1.0, -1.0], "return_sign": True}, (-INF, 0.0)),
    ("logsumexp", ([0.0, 0.0],), {"b": [1.0, -1.0]}, -INF),
    ("logsumexp", ([-INF, -INF],), {"return_sign": True}, (-INF, 0.0)),
    ("logsumexp", ([0.0, NAN],), {"return_sign": True}, (NAN, NAN)),
    ("logsumexp", ([INF, 0.0],), {"b": [-1.0, 1.0]}, NAN),
    ("logsumexp", ([INF, 0.0],), {"b": [-1.0, 1.0], "return_sign": True}, (INF, -1.0)),
    ("logsumexp", ([INF, INF],), {"b": [-1.0, 1.0]}, NAN),
    ("logsumexp", ([INF, 1e30],), {"b": [-1.0, 2.0], "return_sign": True}, (INF, -1.0)),
    ("logsumexp", ([INF, 1e30],), {"b": [1.0, -2.0]}, INF),
    ("logsumexp", ([-INF, 0.0],), {"b": [-1.0, 1.0]}, 0.0),
    ("softmax", ([-INF, -INF],), {}, [NAN, NAN]),
    ("softmax", ([INF, 0.0],), {}, [NAN, NAN]),
    ("softmax", ([INF, -INF],), {}, [NAN, NAN]),
    ("softmax", ([NAN, 0.0],), {}, [NAN, NAN]),
    ("softmax", ([0.0, -INF],), {}, [1.0, 0.0]),
    ("softmax", ([3e38, -3e38],), {}, [1.0, 0.0]),
    ("softmax", ([NAN, INF],), {"where": [F, F]}, [0.0, 0.0]),
    ("softmax", ([NAN, 7.0],), {"where": [F, T]}, [0.0, 1.0]),
    ("softmax", ([NAN, -INF],), {"where": [F, T]}, [0.0, NAN]),
    ("softmax", ([0.0, INF],), {"where": [F, T]}, [0.0, NAN]),
    ("log_softmax", ([-INF, -INF],), {}, [NAN, NAN]),
    ("log_softmax", ([INF, 0.0],), {}, [NAN, NAN]),
    ("log_softmax", ([NAN, 0.0],), {}, [NAN, NAN]),
    ("log_softmax", ([5.0, -INF],), {}, [0.0, -INF]),
    ("log_softmax", ([0.0, -1e30],), {}, [0.0, -1e30]),
    ("log_softmax", ([NAN, INF],), {"where": [F, F]}, [0.0, 0.0]),
    ("log_softmax", ([NAN, 7.0],), {"where": [F, T]}, [0.0, 0.0]),
    ("log_softmax", ([INF, -INF],), {"where": [F, T]}, [0.0, NAN]),
    ("entropy", ([0.0, 1.0],), {}, 0.0),
    ("entropy", ([-0.0, 1.0],), {}, 0.0),
    ("entropy", ([0.0, 0.0],), {}, 0.0),
    ("entropy", ([0.5, 0.5],), {}, LN2),
    ("entropy", ([0.5, 0.5],), {"base": 2}, 1.0),
    ("entropy", ([0.0, 1.0],), {"base": 0.5}, 0.0),
    ("entropy", ([2.0, 2.0],), {}, -4 * LN2),
    ("entropy", ([-DENORMAL, 1.0],), {}, NAN),
    ("entropy", ([-0.5, 1.5],), {}, NAN),
    ("entropy", ([INF, 0.5],), {}, NAN),
    ("entropy", ([-INF, 0.5],), {}, NAN),
    ("entropy", ([NAN, 0.5],), {}, NAN),
    ("entropy", ([NAN, 1.0],), {"where": [F, T]}, 0.0),
    ("entropy", ([-1.0, 1.0],), {"where": [F, F]}, 0.0),
    ("entropy", ([0.0, 0.0],), {"given": "logits"}, LN2),
    ("entropy", ([0.0, -INF],), {"given": "logits"}, 0.0),
    ("entropy", ([3e38, -3e38],), {"given": "logits"}, 0.0),
    ("entropy", ([-INF, -INF],), {"given": "logits"}, NAN),
    ("entropy", ([INF, 0.0],), {"given": "logits"}, NAN),
    ("entropy", ([NAN, 0.0],), {"given": "logits"}, NAN),
    ("entropy", ([NAN, 0.0],), {"given": "logits", "where": [F, T]}, 0.0),
    ("entropy", ([NAN, 0.0],), {"given": "logits", "where": [F, F]}, NAN),
    ("cross_entropy", ([0.0, 1.0], [0.0, 1.0]), {}, 0.0),
    ("cross_entropy", ([0.0, 1.0], [0.5, 0.5]), {}, LN2),
    ("cross_entropy", ([0.5, 0.5], [0.0, 1.0]), {}, INF),
    ("cross_entropy", ([DENORMAL, 1.0], [-0.0, 1.0]), {}, INF),
    ("cross_entropy", ([1.0, 1.0], [2.0, 2.0]), {}, -2 * LN2),
    ("cross_entropy", ([-0.0, 1.0], [0.0, 1.0]), {}, 0.0),
    ("kl_divergence", ([0.0, 1.0], [0.0, 1.0]), {}, 0.0),
    ("kl_divergence", ([0.3, 0.7], [0.3, 0.7]), {}, 0.0),
    ("kl_divergence", ([0.0, 1.0], [0.5, 0.5]), {}, LN2),
    ("kl_divergence", ([0.5, 0.5], [0.0, 1.0]), {}, INF),
    ("kl_divergence", ([0.0, 0.0], [0.5, 0.5]), {}, 0.0),
    ("kl_divergence", ([DENORMAL, 1.0], [-0.0, 1.0]), {}, INF),
    ("kl_divergence", ([-0.0, 1.0], [0.0, 1.0]), {}, 0.0),
    ("kl_divergence", ([1.0, 1.0], [2.0, 2.0]), {}, -2 * LN2),
    ("kl_divergence", ([2.0, 2.0], [1.0, 1.0]), {"base": 2}, 4.0),
    ("kl_divergence", ([1.0, 3.0], [2.0, 6.0]), {"normalize": True}, 0.0),
    ("kl_divergence", ([0.3, 0.7], [0.3, 0.7]), {"normalize": True}, 0.0),
    ("kl_divergence", ([0.0, 7.0], [3.0, 3.0]), {"normalize": True}, LN2),
    ("kl_divergence", ([2.0, 2.0], [0.0, 7.0]), {"normalize": True}, INF),
    ("kl_divergence", ([0.0, 0.0], [0.5, 0.5]), {"normalize": True}, NAN),
    ("kl_divergence", ([0.5, 0.5], [0.0, 0.0]), {"normalize": True}, NAN),
    ("kl_divergence", ([0.5, 0.5], [0.5, 0.5]), {"normalize": True, "where": [F, F]}, NAN),
    ("kl_divergence", ([3e38, 3e38], [3e38, 3e38]), {"normalize": True}, 0.0),
    ("kl_divergence", ([DENORMAL, DENORMAL], [DENORMAL, DENORMAL]), {"normalize": True}, 0.0),
    ("generalized_kl", ([0.0, 0.5], [0.25, 0.5]), {}, 0.25),
    ("generalized_kl", ([0.0, 0.0], [0.0, 0.0]), {}, 0.0),
    ("generalized_kl", ([0.3, 0.7], [0.3, 0.7]), {}, 0.0),
    ("generalized_kl", ([0.5, 0.5], [0.0, 1.0]), {}, INF),
    ("generalized_kl", ([DENORMAL, 1.0], [0.0, 1.0]), {}, INF),
    ("generalized_kl", ([0.0, 0.0], [0.5, 0.5]), {}, 1.0),
    ("softmax_cross_entropy", ([0.0, 0.0], 1), {}, LN2),
    ("softmax_cross_entropy", ([3.0], 0), {}, 0.0),
    ("softmax_cross_entropy", ([0.0, -INF], 0), {}, 0.0),
    ("softmax_cross_entropy", ([0.0, -INF], 1), {}, INF),
    ("softmax_cross_entropy", ([-INF, -INF], 0), {}, NAN),
    ("softmax_cross_entropy", ([INF, 0.0], 0), {}, NAN),
    ("softmax_cross_entropy", ([INF, 0.0], 1), {}, NAN),
    ("softmax_cross_entropy", ([INF, -INF], 1), {}, NAN),
    ("softmax_cross_entropy", ([NAN, 0.0], 0), {}, NAN),
    ("softmax_cross_entropy", ([NAN, 0.0], 1), {}, NAN),
    ("softmax_cross_entropy", ([NAN, -INF], 1), {}, NAN),
    ("softmax_cross_entropy", ([0.0, -1e30], 1), {}, 1e30),
    ("softmax_cross_entropy", ([NAN, 0.0], 1), {"where": [F, T]}, 0.0),
    ("softmax_cross_entropy", ([0.0, 0.0], 0), {"where": [F, T]}, INF),
    ("softmax_cross_entropy", ([NAN, 0.0], 0), {"where": [F, T]}, INF),
    ("softmax_cross_entropy", ([NAN, INF], 1), {"ignore_index": 1}, 0.0),
    ("softmax_cross_entropy", ([NAN, INF], -100), {"ignore_index": -100}, 0.0),
]
# order alpha (renyi)
_POINT = [0.0, 1.0]
EDGES += [
    ("renyi_entropy", ([0.5, 0.5], 0.0), {}, LN2),
    ("renyi_entropy", ([0.5, 0.5], 3.0), {"base": 2}, 1.0),
    ("renyi_entropy", ([0.5, 0.5], INF), {}, LN2),
    ("renyi_entropy", ([0.5, 0.5], 1e300), {}, LN2),
    ("renyi_entropy", ([0.5, 0.25], 1.0), {}, 4 / 3 * LN2),
    ("renyi_entropy", ([0.25, 0.25], 0.0), {}, 2 * LN2),
    ("renyi_entropy", ([2.0, 2.0], 2.0), {}, -LN2),
    ("renyi_entropy", ([2.0, 2.0], 2.0), {"normalize": True}, LN2),
    ("renyi_entropy", ([DENORMAL, DENORMAL], 2.0), {"normalize": True}, LN2),
    ("renyi_entropy", ([3e38, 3e38], 0.5), {"normalize": True}, LN2),
    ("renyi_entropy", ([0.0, 0.0], 2.0), {"given": "logits"}, LN2),
    ("renyi_entropy", ([3e38, -3e38], 2.0), {"given": "logits"}, 0.0),
    ("renyi_entropy", ([-LN2, -LN2], 2.0), {"given": "log_probs"}, LN2),
    ("renyi_entropy", ([0.0, 2 * LN2], 0.0), {"given": "logits", "temperature": 2.0}, LN2),
    ("tsallis_entropy", ([0.5, 0.5], 0.0), {}, 1.0),
    ("tsallis_entropy", ([0.5, 0.5], 1.0), {}, LN2),
    ("tsallis_entropy", ([0.5, 0.5], 2.0), {}, 0.5),
    ("tsallis_entropy", ([2.0, 2.0], 2.0), {}, -4.0),
    ("tsallis_entropy", ([2.0, 2.0], 2.0), {"normalize": True}, 0.5),
    ("tsallis_entropy", ([0.0, 0.0], 2.0), {"given": "logits"}, 0.5),
    ("tsallis_entropy", ([-LN2, -INF], 2.0), {"given": "log_probs"}, 0.25),
    ("renyi_divergence", ([0.25, 0.75], [0.5, 0.5], INF), {}, math.log(1.5)),
    ("renyi_divergence", ([0.25, 0.75], [0.5, 0.5], 1e300), {}, math.log(1.5)),
    ("renyi_divergence", ([0.25, 0.75], [0.5, 0.5], 2.0), {"base": 2}, math.log2(1.25)),
    ("renyi_divergence", ([0.0, 1.0], [0.5, 0.5], 0.0), {}, LN2),
    ("renyi_divergence", ([0.5, 0.5], [0.0, 1.0], 0.0), {}, 0.0),
    ("renyi_divergence", ([0.5, 0.5], [0.0, 1.0], 0.5), {}, LN2),
    ("renyi_divergence", ([2.0, 2.0], [1.0, 1.0], 0.5), {}, LN2),
    ("renyi_divergence", ([1.0, 1.0], [2.0, 2.0], 2.0), {}, -LN2),
    ("renyi_divergence", ([DENORMAL, 1.0], [0.0, 1.0], 2.0), {"normalize": True}, INF),
    ("renyi_divergence", ([0.0, 0.0], [0.5, 0.5], 2.0), {}, NAN),
    ("renyi_divergence", ([0.5, 0.5], [0.0, 0.0], 0.5), {}, INF),
    ("renyi_divergence", ([-LN2, -LN2], [-LN2, -INF], 0.5), {"given": "log_probs"}, 2 * LN2),
    ("renyi_divergence", ([0.0, 0.0], [-INF, 0.0], 0.5), {"given": "logits"}, LN2),
    ("renyi_divergence", ([1.0, 2.0], [3.0, 4.0], 3.0), {"given": "logits"}, 0.0),
    ("renyi_divergence", ([0.0, 0.0], [0.0, 1e6], 1e7), {"given": "logits"}, 1e6),
    ("renyi_divergence", ([0.0, 1e6], [0.0, 1e6], 1e7), {"given": "logits"}, 0.0),
    ("tsallis_divergence", ([0.5, 0.5], [0.0, 1.0], 0.0), {}, 0.0),
    ("tsallis_divergence", ([0.0, 1.0], [0.5, 0.5], 0.0), {}, 0.5),
    ("tsallis_divergence", ([0.5, 0.5], [0.0, 1.0], 0.5), {}, 2 - math.sqrt(2)),
    ("tsallis_divergence", ([1.0, 0.0], [0.0, 1.0], 0.5), {}, 2.0),
    ("tsallis_divergence", ([2.0, 2.0], [1.0, 1.0], 1.0), {}, 4 * LN2),
    ("tsallis_divergence", ([1.0, 1.0], [2.0, 2.0], 2.0), {}, -1.0),
    ("tsallis_divergence", ([0.0, 0.0], [0.5, 0.5], 2.0), {}, 0.0),
    ("tsallis_divergence", ([0.0, 0.0], [0.0, 0.0], 0.3), {}, 0.0),
    ("tsallis_divergence", ([0.0, 0.0], [-INF, 0.0], 1.0), {"given": "logits"}, INF),
    ("alpha_divergence", ([0.5, 0.5], [0.0, 1.0], 0.5), {}, 4 - 2 * math.sqrt(2)),
    ("alpha_divergence", ([0.5, 0.5], [0.0, 1.0], 0.0), {}, LN2),
    ("alpha_divergence", ([0.0, 1.0], [0.5, 0.5], 0.0), {}, INF),
    ("alpha_divergence", ([0.0, 1.0], [0.5, 0.5], -2.0), {}, INF),
    ("alpha_divergence", ([0.0, 1.0], [0.5, 0.5], 1.0), {}, LN2),
    ("alpha_divergence", ([0.0, 1.0], [0.5, 0.5], 2.0), {}, 0.5),
    ("alpha_divergence", ([0.0, 0.5], [0.25, 0.5], 0.25), {}, 1.0),
    ("alpha_divergence", ([0.0, 0.0], [0.0, 0.0], 0.3), {}, 0.0),
    ("alpha_divergence", ([1.0, 1.0], [2.0, 2.0], 2.0), {}, 0.5),
    ("alpha_divergence", ([1.0, 1.0], [2.0, 2.0], 2.0), {"normalize": True}, 0.0),
]
for _alpha in (0.0, 0.3, 1.0, 2.0, 1e5, INF):
    EDGES += [
        ("renyi_entropy", (_POINT, _alpha), {}, 0.0),
        ("renyi_entropy", ([-0.0, 1.0], _alpha), {}, 0.0),
        ("renyi_entropy", ([0.0, 0.0], _alpha), {}, NAN),
        ("renyi_entropy", ([0.0, 0.0], _alpha), {"normalize": True}, NAN),
        ("renyi_entropy", ([0.0, -INF], _alpha), {"given": "logits"}, 0.0),
        ("renyi_entropy", ([NAN, 1.0], _alpha), {"where": [F, T]}, 0.0),
        ("renyi_divergence", (_POINT, _POINT, _alpha), {}, 0.0),
        ("renyi_divergence", ([0.3, 0.7], [0.3, 0.7], _alpha), {}, 0.0),
        ("renyi_divergence", ([0.3, 0.7], [0.3, 0.7], _alpha), {"normalize": True}, 0.0),
        ("renyi_divergence", ([1.0, 0.0], _POINT, _alpha), {}, INF),
        ("renyi_divergence", ([0.5, 0.5], [0.0, 0.0], _alpha), {"normalize": True}, NAN),
        ("renyi_divergence", ([0.0, 0.0], [0.5, 0.5], _alpha), {"normalize": True}, NAN),
        ("renyi_divergence", ([0.0, -INF], [-INF, 0.0], _alpha), {"given": "logits"}, INF),
        ("renyi_divergence", ([0.0, -INF], [7.0, -INF], _alpha), {"given": "logits"}, 0.0),
        ("renyi_divergence", ([0.5, 0.5], [0.5, 0.5], _alpha), {"where": [F, F]}, NAN),
    ]
    if _alpha >= 1:
        EDGES += [
            ("renyi_divergence", ([0.5, 0.5], _POINT, _alpha), {}, INF),
            ("renyi_divergence", ([DENORMAL, 1.0], [-0.0, 1.0], _alpha), {}, INF),
        ]
    if _alpha < INF:
        EDGES += [
            ("tsallis_entropy", (_POINT, _alpha), {}, 0.0),
            ("tsallis_entropy", ([0.0, 0.0], _alpha), {}, 0.0),
            ("tsallis_entropy", ([NAN, 1.0], _alpha), {"where": [F, F]}, 0.0),
            ("tsallis_entropy", ([0.0, -INF], _alpha), {"given": "logits"}, 0.0),
            ("tsallis_divergence", ([0.3, 0.7], [0.3, 0.7], _alpha), {}, 0.0),
            ("alpha_divergence", ([0.3, 0.7], [0.3, 0.7], _alpha), {}, 0.0),
            ("alpha_divergence", ([1.0, 2.0], [3.0, 4.0], _alpha), {"given": "logits"}, 0.0),
        ]
    if _alpha not in (0.3, 2.0):
        continue
    for _bad in (-DENORMAL, -0.5, INF, -INF, NAN):
        for _function in ("renyi_entropy", "tsallis_entropy"):
            EDGES += [
                (_function, ([_bad, 0.5], _alpha), {}, NAN),
                (_function, ([_bad, 0.5], _alpha), {"normalize": True}, NAN),
                (_function, ([_bad, 1.0], _alpha), {"where": [F, T]}, 0.0),
            ]
        for _function in ("renyi_divergence", "tsallis_divergence", "alpha_divergence"):
            EDGES += [
                (_function, ([_bad, 0.5], [0.5, 0.5], _alpha), {}, NAN),
                (_function, ([0.5, 0.5], [_bad, 0.5], _alpha), {}, NAN),
                (_function, ([0.0, 1.0], [_bad, 0.5], _alpha), {}, NAN),
                (_function, ([_bad, 0.5], [0.0, 0.0], _alpha), {}, NAN),
                (_function, ([_bad, 0.5], [0.5, 0.5], _alpha), {"normalize": True}, NAN),
                (_function, ([_bad, 1.0], [_bad, 1.0], _alpha), {"where": [F, T]}, 0.0),
            ]
    for _bad in (INF, NAN):
        EDGES += [
            ("renyi_entropy", ([_bad, 0.0], _alpha), {"given": "logits"}, NAN),
            ("renyi_entropy", ([-INF, -INF], _alpha), {"given": "logits"}, NAN),
            ("renyi_divergence", ([_bad, 0.0], [0.0, 0.0], _alpha), {"given": "logits"}, NAN),
            ("renyi_divergence", ([0.0, 0.0], [_bad, 0.0], _alpha), {"given": "log_probs"}, NAN),
        ]
# scan
EDGES += [
    ("perplexity", ([0.0, 1.0],), {}, 1.0),
    ("perplexity", ([0.5, 0.5],), {}, 2.0),
    ("perplexity", ([0.0, 0.0],), {}, 1.0),
    ("perplexity", ([-DENORMAL, 1.0],), {}, NAN),
    ("perplexity", ([INF, 0.5],), {}, NAN),
    ("perplexity", ([NAN, 1.0],), {"where": [F, T]}, 1.0),
    ("perplexity", ([0.0, 0.0],), {"given": "logits"}, 2.0),
    ("perplexity", ([7.0, -INF],), {"given": "logits"}, 1.0),
    ("perplexity", ([INF, 0.0],), {"given": "logits"}, NAN),
    ("perplexity", ([-INF, -INF],), {"given": "logits"}, NAN),
    ("wasserstein_1d", ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]), {}, 0.0),
    ("wasserstein_1d", ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]), {}, 2.0),
    ("wasserstein_1d", ([0.0, 0.0], [0.0, 0.0]), {}, 0.0),
    ("wasserstein_1d", ([-0.0, 1.0], [0.0, 1.0]), {}, 0.0),
    ("wasserstein_1d", ([DENORMAL, 0.0], [0.0, DENORMAL]), {}, DENORMAL),
    ("wasserstein_1d", ([3e38, 0.0], [0.0, 3e38]), {}, 3e38),
    ("wasserstein_1d", ([NAN, 0.5, 0.5], [0.5, 1.0, 0.0]), {"where": [F, T, T]}, 0.5),
    ("wasserstein_1d", ([1.0, 0.0], [0.0, 3.0]), {"normalize": True}, 1.0),
    ("wasserstein_1d", ([1.0, 3.0], [2.0, 6.0]), {"normalize": True}, 0.0),
    ("wasserstein_1d", ([DENORMAL, 0.0], [0.0, 3e38]), {"normalize": True}, 1.0),
    ("wasserstein_1d", ([3e38, 3e38], [3e38, 0.0]), {"normalize": True}, 0.5),
    ("wasserstein_1d", ([0.0, 0.0], [0.5, 0.5]), {"normalize": True}, NAN),
    ("wasserstein_1d", ([0.5, 0.5], [0.0, 0.0]), {"normalize": True}, NAN),
]
for _function in ("cross_entropy", "kl_divergence", "generalized_kl", "wasserstein_1d"):
    for _bad in (-DENORMAL, -0.5, INF, -INF, NAN):
        EDGES += [
            (_function, ([_bad, 0.5], [0.5, 0.5]), {}, NAN),
            (_function, ([0.5, 0.5], [_bad, 0.5]), {}, NAN),
            (_function, ([0.0, 1.0], [_bad, 0.5]), {}, NAN),
            (_function, ([_bad, 0.5], [0.0, 0.0]), {}, NAN),
            (_function, ([_bad, 0.5], [0.5, 0.5]), {"where": [F, F]}, 0.0),
            (_function, ([_bad, 1.0], [_bad, 1.0]), {"where": [F, T]}, 0.0),
        ]
        if _function in ("kl_divergence", "wasserstein_1d"):
            EDGES += [
                (_function, ([_bad, 0.5], [0.5, 0.5]), {"normalize": True}, NAN),
                (_function, ([0.5, 0.5], [_bad, 0.5]), {"normalize": True}, NAN),
                (_function, ([0.0, 1.0], [_bad, 0.5]), {"normalize": True}, NAN),
            ]


# pointwise
_JS = 0.25 * math.log(4) + 0.75 * math.log(4 / 3) - LN2 / 2  # H(m) - (H(p) + H(q)) / 2, m = [1/4, 3/4]
_H = math.sqrt(1 - math.sqrt(0.5))
_DIVERGENCES = {  # of one-hot rows that differ; of [0, 1] and [0.5, 0.5]; of the same exchanged
    "js_divergence": (LN2, _JS, _JS),
    "js_distance": (math.sqrt(LN2), math.sqrt(_JS), math.sqrt(_JS)),
    "jeffreys_divergence": (INF, INF, INF),
    "hellinger_distance": (1.0, _H, _H),
    "bhattacharyya_distance": (INF, LN2 / 2, LN2 / 2),
    "total_variation": (1.0, 0.5, 0.5),
    "chi2_divergence": (INF, 1.0, INF),
    "triangular_discrimination": (2.0, 2 / 3, 2 / 3),
}
for _function, (_apart, _one_way, _other) in _DIVERGENCES.items():
    # Without a common class the distance of what sums to 0 is that, too; else equal rows are 0 apart.
    _nothing = INF if _function == "bhattacharyya_distance" else 0.0
    EDGES += [
        (_function, ([0.0, 1.0], [0.0, 1.0]), {}, 0.0),
        (_function, ([0.25, 0.75], [0.25, 0.75]), {}, 0.0),
        (_function, ([-0.0, 1.0], [0.0, 1.0]), {}, 0.0),
        (_function, ([0.0, 0.0], [0.0, -0.0]), {}, _nothing),
        (_function, ([0.0, 1.0], [1.0, 0.0]), {}, _apart),
        (_function, ([0.0, 1.0], [0.5, 0.5]), {}, _one_way),
        (_function, ([0.5, 0.5], [0.0, 1.0]), {}, _other),
        (_function, ([1.0, 0.0], [-0.0, 1.0]), {}, _apart),
        (_function, ([0.0, 7.0], [3.0, 3.0]), {"normalize": True}, _one_way),
        (_function, ([2.0, 2.0], [0.0, 7.0]), {"normalize": True}, _other),
        (_function, ([0.0, 3e38], [3e38, 3e38]), {"normalize": True}, _one_way),
        (_function, ([0.0, 3e38], [DENORMAL, DENORMAL]), {"normalize": True}, _one_way),
        (_function, ([0.3, 0.7], [0.3, 0.7]), {"normalize": True}, 0.0),
        (_function, ([1.0, 3.0], [2.0, 6.0]), {"normalize": True}, 0.0),
        (_function, ([DENORMAL, DENORMAL], [3e38, 3e38]), {"normalize": True}, 0.0),
        (_function, ([0.0, 0.0], [0.5, 0.5]), {"normalize": True}, NAN),
        (_function, ([0.5, 0.5], [0.0, 0.0]), {"normalize": True}, NAN),
        (_function, ([0.5, 0.5], [0.5, 0.5]), {"normalize": True, "where": [F, F]}, NAN),
        (_function, ([-0.5, -0.5], [0.5, 0.5]), {"normalize": True}, NAN),
        (_function, ([NAN, 1.0], [-1.0, 1.0]), {"where": [F, T]}, 0.0),
        (_function, ([NAN, 0.5], [INF, 0.5]), {"where": [F, F]}, _nothing),
    ]
    for _bad in (-DENORMAL, -0.5, INF, -INF, NAN):
        EDGES += [
            (_function, ([_bad, 0.5], [0.5, 0.5]), {}, NAN),
            (_function, ([0.5, 0.5], [_bad, 0.5]), {}, NAN),
            (_function, ([_bad, 1.0], [_bad, 1.0]), {}, NAN),
            (_function, ([_bad, 0.5], [0.5, 0.5]), {"normalize": True}, NAN),
            (_function, ([0.0, 1.0], [_bad, 0.0]), {"normalize": True}, NAN),
        ]
EDGES += [
    ("js_divergence", ([1.0, 0.0], [0.0, 1.0]), {"base": 2}, 1.0),
    ("js_distance", ([1.0, 0.0], [0.0, 1.0]), {"base": 4}, math.sqrt(0.5)),
    ("js_divergence", ([1.0, 0.0], [0.0, 1.0]), {"weight": 0.25}, 0.25 * math.log(4) + 0.75 * math.log(4 / 3)),
    ("js_divergence", ([1.0, 0.0], [0.0, 1.0]), {"weight": 0.0}, 0.0),
    ("js_divergence", ([0.25, 0.75], [0.5, 0.5]), {"weight": 1}, 0.0),
    ("js_divergence", ([NAN, 0.5], [0.5, 0.5]), {"weight": 0.0}, NAN),
    ("js_divergence", ([0.5, 0.5], [-0.5, 0.5]), {"weight": 1.0}, NAN),
    ("js_divergence", ([3e38, 0.0], [0.0, 1.0]), {"weight": 0.0}, 0.0),
    ("chi2_divergence", ([0.0, 1.0], [0.5, 0.5]), {"kind": "neyman"}, INF),
    ("chi2_divergence", ([0.5, 0.5], [0.0, 1.0]), {"kind": "neyman"}, 1.0),
    ("chi2_divergence", ([DENORMAL, 1.0], [0.0, 1.0]), {}, INF),
    ("chi2_divergence", ([0.0, 1.0], [DENORMAL, 1.0]), {}, DENORMAL),
    ("chi2_divergence", ([3e38, 1.0], [3e38, 1.0]), {}, 0.0),
    ("jeffreys_divergence", ([DENORMAL, 1.0], [0.0, 1.0]), {}, INF),
    ("jeffreys_divergence", ([0.0, 1.0], [DENORMAL, 1.0]), {}, INF),
    ("triangular_discrimination", ([3e38, 1.0], [1e38, 1.0]), {}, 1e38),
    ("total_variation", ([3e38, 0.0], [0.0, 3e38]), {}, 3e38),
    ("hellinger_distance", ([2e38, 1.0], [0.0, 1.0]), {}, 1e19),
    ("bhattacharyya_distance", ([2.0, 0.0], [2.0, 0.0]), {}, -LN2),
]


def edge_id(edge: Any) -> str:
    function, arguments, keywords, _ = edge
    said = [str(v).replace(" ", "") for v in arguments] + [f"{k}={v}".replace(" ", "") for k, v in keywords.items()]
    return f"{function}({','.join(said)})"


def padded(v: Any, absent: float, width: int, dtype: str) -> Any:
    """Return a row with entries added that are absent: weigh nothing in any formula."""
    return np.concatenate([np.array(v, dtype), np.full(width, absent, dtype)]) if isinstance(v, list) else v


# The kernels have a loop for each of these widths, the reference has none.
WIDTHS = [(fk, width) for width in (0, 1, 30, 150, 5000, 131_100)] + [(reference, width) for width in (0, 150)]


@dtypes
@pytest.mark.parametrize(("module", "width"), WIDTHS, ids=lambda v: f"+{v}" if isinstance(v, int) else v.__name__)
@pytest.mark.parametrize("edge", EDGES, ids=edge_id)
def test_edge(edge: Any, module: ModuleType, width: int, dtype: str) -> None:
    """Alone, and among entries that count for nothing, which takes the row through the loops for longer rows."""
    function, arguments, keywords, expected = edge
    logits = function in ("logsumexp", "softmax", "log_softmax", "softmax_cross_entropy") or "given" in keywords
    absent = -INF if logits else 0.0
    arguments = [padded(v, absent, width, dtype) for v in arguments]
    # Of a row masked out whole, the added entries are masked out too.
    added = {"b": 0.0, "where": any(keywords.get("where", ()))}
    keywords = {k: padded(v, added.get(k), width, dtype if k == "b" else bool) for k, v in keywords.items()}
    with np.errstate(all="raise"):
        got = getattr(module, function)(*arguments, **keywords)
    for result, right in zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]:
        check(result, right, dtype)


def check(got: Any, right: Any, dtype: str) -> None:
    assert got.dtype == dtype
    if isinstance(right, list):
        assert isinstance(got, np.ndarray)
        kept = got[: len(right)]
        np.testing.assert_allclose(kept, np.array(right, dtype), rtol=1e-6)
        if not np.isnan(right).any():
            assert set(got[len(right) :].tolist()) <= {0.0, -INF}
        return
    assert isinstance(got, np.floating)
    np.testing.assert_allclose(got, np.array(right, dtype), rtol=1e-6)
    assert right != 0 or math.copysign(1, got) == 1, "-0.0"


# Empty things -----------------------------------------------------------------------------------------------------

EMPTY = {
    "logsumexp": -INF,
    "entropy": 0.0,
    "entropy[logits]": NAN,
    "cross_entropy": 0.0,
    "kl_divergence": 0.0,
    "kl_divergence[normalize]": NAN,
    "generalized_kl": 0.0,
    # pointwise
    **{id_: NAN if "normalize" in id_ else INF if "bhatt" in id_ else 0.0 for id_ in oracle.POINTWISE},
    # order alpha (renyi)
    "renyi_entropy[alpha=2]": NAN,
    "tsallis_entropy[alpha=0.5]": 0.0,
    "renyi_divergence[alpha=0.5]": NAN,
    "renyi_divergence[alpha=2,normalize]": NAN,
    "tsallis_divergence[alpha=1.5]": 0.0,
    "alpha_divergence[alpha=0.3]": 0.0,
    # scan
    "perplexity": 1.0,
    "perplexity[logits]": NAN,
    "wasserstein_1d": 0.0,
    "wasserstein_1d[normalize]": NAN,
}


def operands(operation: Operation, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw arrays for an operation; labels within the classes."""
    if operation.domain == "logits":
        x = [3 * rng.normal(size=shape)]
    else:
        x = [rng.uniform(0.01, 1, shape) for _ in operation.operands]
    x = [v.astype(dtype) for v in x]
    return [*x, rng.integers(max(shape[-1], 1), size=shape[:-1])] if "labels" in operation.operands else x


@both
@dtypes
@operations
def test_zero_rows(operation: Operation, dtype: str, module: ModuleType, rng: np.random.Generator) -> None:
    for shape in ((0, 5), (0, 0), (3, 0, 5)):
        got = oracle.evaluate(module, operation, operands(operation, shape, dtype, rng))
        assert got.shape == (shape if operation.returns == "element" else shape[:-1])
        assert got.dtype == dtype
        if operation.returns == "row":
            got = oracle.evaluate(module, operation, operands(operation, shape, dtype, rng), keepdims=True)
            assert got.shape == (*shape[:-1], 1)


@both
@dtypes
@operations
def test_zero_classes(operation: Operation, dtype: str, module: ModuleType, rng: np.random.Generator) -> None:
    arrays = operands(operation, (4, 0), dtype, rng)
    if operation.returns == "element":
        got = oracle.evaluate(module, operation, arrays)
        assert (got.shape, got.dtype) == ((4, 0), dtype)
    elif "labels" in operation.operands:
        with pytest.raises(IndexError, match="label 0 in row 0 is out of range for 0 classes"):
            oracle.evaluate(module, operation, arrays)
        ignored = oracle.evaluate(module, operation, arrays, ignore_index=0)
        np.testing.assert_array_equal(ignored, np.zeros(4, dtype), strict=True)
    else:
        got = oracle.evaluate(module, operation, arrays)
        np.testing.assert_array_equal(got, np.full(4, EMPTY[operation.id], dtype), strict=True)


@both
@dtypes
@pytest.mark.parametrize("width", [0, 30, 150, 5000])
def test_normalized_rows_of_any_scale(width: int, dtype: str, module: ModuleType) -> None:
    """Rows that differ by a factor are one distribution: their divergence is 0, or below what eps can tell from 0."""
    smallest = 8 * float(np.finfo(dtype).eps) * oracle.SMALLEST_DIVERGENCE[dtype]
    one = np.array([1.0, 3.0, *np.zeros(width)], dtype)
    # Powers of two, so that scaling is exact.
    scales = [2.0**k for k in ((-149, -100, -3, 0, 20, 126) if dtype == "float32" else (-1074, -600, -3, 0, 20, 1022))]
    for of_p in scales:
        for of_q in scales:
            got = module.kl_divergence(np.multiply(one, of_p), np.multiply(one, of_q), normalize=True)
            assert got.dtype == dtype
            assert 0 <= got <= smallest, (of_p, of_q)


# A bad row is alone in its badness --------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("size", [2, 9, 64, 100, 1000, 5000])
@operations
def test_an_odd_row_leaves_its_neighbours_alone(
    operation: Operation, size: int, dtype: str, rng: np.random.Generator
) -> None:
    n = 200 if size <= 100 else 9
    arrays = operands(operation, (n, size), dtype, rng)
    before = oracle.evaluate(fk, operation, arrays)
    odd = rng.choice(n, 3, replace=False)
    others = np.setdiff1d(np.arange(n), odd)
    for bad in (NAN, INF, -INF, -1.0, 0.0, DENORMAL, 3e38):
        for i in range(len(operation.operands)):
            changed = [v.copy() for v in arrays]
            if changed[i].ndim == 1:
                continue  # labels
            changed[i][odd, rng.integers(size, size=3)] = bad
            after = oracle.evaluate(fk, operation, changed)
            assert after[others].tobytes() == before[others].tobytes(), bad
            if math.isnan(bad):
                of_odd = np.isnan(after[odd])
                assert (of_odd.any(-1) if operation.id == "logcumsumexp" else of_odd).all()
            alone = oracle.evaluate(fk, operation, [v[odd] for v in changed])
            assert alone.tobytes() == after[odd].tobytes(), bad


#: Sums of terms of both signs, or of the size of the largest entry.
SUMS = (
    "kl_divergence", "cross_entropy", "entropy", "logsumexp", "logcumsumexp", "wasserstein_1d",
    "tsallis_entropy", "tsallis_divergence",
)  # fmt: skip

# Kernels against reference, anything goes -------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(8))
@dtypes
@operations
def test_behaves_as_the_reference(operation: Operation, dtype: str, round_: int, rng: np.random.Generator) -> None:
    """Rows strewn with special values, any axis, mask, base, weights: the same NaNs, infinities and numbers."""
    oddities = [NAN, INF, -INF, 0.0, -0.0, -1.0, 1.0, DENORMAL, -DENORMAL, 1e-30, 1e30]
    for _ in range(12):
        shape = tuple(int(v) for v in rng.choice([1, 2, 3, 5, 8, 17, 70], size=rng.integers(1, 4)))
        arrays = operands(operation, shape, dtype, rng)
        keywords: dict[str, Any] = {}
        for v in arrays[: 1 if operation.domain == "logits" else 2]:
            strewn = rng.random(shape) < rng.choice([0, 0.02, 0.2])
            v[strewn] = rng.choice(oddities, strewn.sum())
        if rng.random() < 0.5:
            keywords["where"] = rng.random(shape) < rng.choice([0.1, 0.5, 0.9])
        if rng.random() < 0.3 and operation.domain == "probabilities" and oracle.takes(operation, "base"):
            # Under a root the unit of a base below 1 is that of no real number.
            keywords["base"] = float(rng.choice([2, 10, 0.5 if operation.function != "js_distance" else 4]))
        if operation.id == "logsumexp" and rng.random() < 0.5:
            keywords["b"] = rng.choice([0.0, 0.5, 1.0, 2.0, -1.0], shape).astype(dtype)
        if "labels" in operation.operands:
            axis = int(rng.integers(-len(shape), len(shape)))
            labels = rng.integers(shape[axis], size=np.delete(shape, axis))
            arrays[1] = np.where(rng.random(labels.shape) < 0.2, 255, labels)
            reduction = str(rng.choice(["none", "none", "mean", "sum"]))
            keywords |= {"axis": axis, "ignore_index": 255, "reduction": reduction}
        else:
            axes = rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)]
            keywords["axis"] = [int(axes[0]), tuple(axes.tolist()), None][rng.integers(3)]
            keywords |= {"keepdims": bool(rng.integers(2))} if operation.returns == "row" else {}
        got = np.asarray(oracle.evaluate(fk, operation, arrays, **keywords))
        right = np.asarray(oracle.evaluate(reference, operation, arrays, **keywords))
        assert got.shape == right.shape
        assert got.dtype == right.dtype == dtype
        what = f"{keywords} of {arrays}"
        np.testing.assert_array_equal(np.isnan(got), np.isnan(right), err_msg=what)
        finite = np.isfinite(right)
        np.testing.assert_array_equal(got[~finite], right[~finite], err_msg=what)
        never_negative = operation.budget.scale in ("relative", "distance") and operation.operands == ("p", "q")
        positive = never_negative or "normalize" in operation.keywords or operation.function == "alpha_divergence"
        if positive and keywords.get("base", 2) > 1:
            assert not (got < 0).any(), what
        # Sums of terms of both signs up to 1e30 * 70: the oracle judges digits, this judges meaning.
        largest = max(1.0, *(np.abs(v[np.isfinite(v)]).max(initial=0) for v in arrays[:2])) * 100
        scale = largest if operation.function in SUMS and not operation.form.endswith(("logits", "normalize")) else 1.0
        atol = 1e-6 * scale if largest > 1000 or dtype == "float32" else 1e-13 * scale
        np.testing.assert_allclose(got[finite], right[finite], rtol=1e-5 if dtype == "float32" else 1e-10, atol=atol)


# Things that peers get wrong --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_sums_do_not_overflow(half: Any, module: ModuleType) -> None:
    zeros, n = np.zeros(70_000, half), 70_000
    assert module.logsumexp(zeros) == np.float32(math.log(n))
    np.testing.assert_allclose(module.softmax(zeros), np.full(n, 1 / n, np.float32), rtol=1e-6)
    np.testing.assert_allclose(module.entropy(zeros, given="logits"), np.float32(math.log(n)), rtol=1e-6)
    np.testing.assert_allclose(module.entropy(np.full(n, 2.0**-16, half)), n * 2.0**-16 * 16 * LN2, rtol=1e-6)
    ones = np.ones(n, half)
    np.testing.assert_allclose(module.kl_divergence(ones, 2 * ones, normalize=True), 0, atol=1e-12)
    np.testing.assert_allclose(module.cross_entropy(ones, 2 * ones), -n * LN2, rtol=1e-6)
    losses = module.softmax_cross_entropy(np.zeros((200_000, 2), half), np.zeros(200_000, int), reduction="mean")
    np.testing.assert_allclose(losses, LN2, rtol=1e-6)
    losses = module.softmax_cross_entropy(np.zeros((200_000, 2), half), np.zeros(200_000, int), reduction="sum")
    np.testing.assert_allclose(losses, 200_000 * LN2, rtol=1e-6)


@both
def test_integers_are_not_computed_in_their_own_type(module: ModuleType) -> None:
    got = module.softmax(np.array([-128, 127], np.int8))
    np.testing.assert_allclose(got, [math.exp(-255), 1.0], rtol=1e-13)
    assert module.logsumexp(np.array([2**64 - 1, 0], np.uint64)) == 2.0**64
    assert module.entropy(np.array([True, False])) == 0
    p = np.array([200, 200], np.uint8)
    assert module.kl_divergence(p, p // 2) == pytest.approx(400 * LN2)


@both
@dtypes
def test_half_of_every_kind_is_nan_only_where_it_should_be(dtype: str, module: ModuleType) -> None:
    """A float16 infinity and NaN are read as such, and the largest float16 is not infinite."""
    for half in (np.float16, ml_dtypes.bfloat16):
        largest = float(ml_dtypes.finfo(half).max)
        x = np.array([[0, INF], [0, NAN], [0, -INF], [0, largest], [-largest, -largest]], half)
        expected = np.array([INF, NAN, 0, largest, -largest], np.float32)
        np.testing.assert_allclose(module.logsumexp(x.astype(half)), expected, rtol=1e-3)


@both
def test_mean_over_no_row(module: ModuleType) -> None:
    x, ignored = np.zeros((3, 4)), np.full(3, -1)
    assert math.isnan(module.softmax_cross_entropy(x, ignored, ignore_index=-1, reduction="mean"))
    assert module.softmax_cross_entropy(x, ignored, ignore_index=-1, reduction="mean", empty_mean=0.0) == 0
    assert module.softmax_cross_entropy(x, ignored, ignore_index=-1, reduction="sum") == 0
    assert math.isnan(module.softmax_cross_entropy(np.zeros((0, 4)), np.zeros(0, int), reduction="mean"))


@both
@pytest.mark.parametrize("label_type", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_out_of_range(label_type: str, module: ModuleType) -> None:
    x, good = np.zeros((6, 5), np.float32), np.array([0, 1, 2, 3, 4, 0], label_type)
    assert (module.softmax_cross_entropy(x, good) > 0).all()
    limits = np.iinfo(label_type)
    for bad in {5, 6, limits.max, limits.min, limits.max - 1, -1 if limits.min else 7}:
        if bad == 0:
            continue
        labels = good.copy()
        labels[[3, 5]] = bad
        with pytest.raises(IndexError, match=f"label {bad} in row 3 is out of range for 5 classes"):
            module.softmax_cross_entropy(x, labels)
        np.testing.assert_array_equal(
            module.softmax_cross_entropy(x, labels, ignore_index=int(bad)) == 0, [F, F, F, T, F, T]
        )
