"""fastkl: log-sum-exp, KL, cross-entropy and their family on CPUs.

NumPy arrays in; entropies, divergences and losses of their rows out. Each input is read once, every digit is right,
and a row's result is the same bits in any batch, layout and number of threads.

==============  =====================================================================================
room            what is in it
==============  =====================================================================================
``logspace``    logsumexp, softmax, log_softmax, logcumsumexp
``information`` entropy, perplexity, cross_entropy, kl_divergence, generalized_kl
``divergences`` js_divergence, js_distance, jeffreys_divergence, hellinger_distance, bhattacharyya_distance,
                total_variation, chi2_divergence, triangular_discrimination
``transport``   wasserstein_1d
``variational`` f_divergence of any generator, variational_bound from a critic's scores
``labels``      softmax_cross_entropy, binary_cross_entropy
``renyi``       renyi_entropy, tsallis_entropy, renyi_divergence, tsallis_divergence, alpha_divergence
``rows``        score: many statistics of a row from one read
``reference``   every function again in plain NumPy float64: the contract
``registry``    a row per operation: form, accuracy budget, bytes moved
``dask``        the functions again over Dask arrays (imported by itself)
``batch``       the command ``fastkl score``
``_args``       the gate: arrays, axes, masks, outputs and labels are checked here and nowhere below
``_call``       from the gate to a kernel and back
``_exact``      sums without rounding
``_threads``    set_num_threads, get_num_threads: how many threads a call may have
``_kernels``    everything compiled, once per instruction set
==============  =====================================================================================
"""

from __future__ import annotations

from typing import Any

try:
    from . import _kernels
    from ._threads import get_num_threads, set_num_threads
except ImportError as error:
    # A tier, or a number of threads, that the environment names wrongly.
    from .__main__ import refuse

    refuse(error)
    raise
from .divergences import (
    bhattacharyya_distance,
    chi2_divergence,
    hellinger_distance,
    jeffreys_divergence,
    js_distance,
    js_divergence,
    total_variation,
    triangular_discrimination,
)
from .information import cross_entropy, entropy, generalized_kl, kl_divergence, perplexity
from .labels import binary_cross_entropy, softmax_cross_entropy
from .logspace import log_softmax, logcumsumexp, logsumexp, softmax
from .renyi import alpha_divergence, renyi_divergence, renyi_entropy, tsallis_divergence, tsallis_entropy
from .rows import Scores, score
from .transport import wasserstein_1d
from .variational import f_divergence, variational_bound

__all__ = [
    "Scores",
    "alpha_divergence",
    "bhattacharyya_distance",
    "binary_cross_entropy",
    "build_info",
    "chi2_divergence",
    "cross_entropy",
    "entropy",
    "f_divergence",
    "generalized_kl",
    "get_num_threads",
    "hellinger_distance",
    "jeffreys_divergence",
    "js_distance",
    "js_divergence",
    "kl_divergence",
    "log_softmax",
    "logcumsumexp",
    "logsumexp",
    "perplexity",
    "renyi_divergence",
    "renyi_entropy",
    "score",
    "set_num_threads",
    "softmax",
    "softmax_cross_entropy",
    "total_variation",
    "triangular_discrimination",
    "tsallis_divergence",
    "tsallis_entropy",
    "variational_bound",
    "wasserstein_1d",
]


def __getattr__(name: str) -> Any:
    """``__version__``, looked up when it is asked for: importlib.metadata takes longer to import than all of this."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("fastkl")
        except PackageNotFoundError:  # a source tree that is not installed
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_info() -> dict[str, Any]:
    """Tell what this build and this machine have.

    Returns
    -------
    dict
        version; tier in use; tiers that this CPU has; compiler; openmp (False: built serial); threads that a large call
        gets by itself.

    Examples
    --------
    >>> import fastkl as fk
    >>> sorted(fk.build_info())
    ['compiler', 'openmp', 'threads', 'tier', 'tiers', 'version']
    """
    return {
        "version": __getattr__("__version__"),
        "tier": _kernels.tier,
        "tiers": _kernels.supported(),
        "compiler": _kernels.cpu.compiler,
        "openmp": _kernels.cpu.openmp,
        "threads": get_num_threads(),
    }
