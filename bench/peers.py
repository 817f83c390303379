"""What each operation looks like in the hands of a good user of another library.

A peer is a class. Its methods are named after the registry's ids (``entropy[logits]`` is ``entropy_logits``); a name
followed by two underscores and a word is another way to write the same operation, and the fastest of them counts.
Every method takes the operands, then the output, then two scratch arrays of the shape of the input. A library that
can write into a given array does so and returns it; one that cannot returns what it made.

``bind`` turns a method and one copy of the arrays into a call without arguments: views are made and kernels are
compiled there, outside of the time that is measured.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastkl.registry import Operation

Call = Callable[[], Any]


class Refused(Exception):
    """The library does not take this operation or type; the text says why."""


class Peer:
    """A library that is compared. ``load`` raises ImportError where it is not installed."""

    name: ClassVar[str]
    distribution: ClassVar[str]

    def load(self, threads: int) -> None:
        """Import the library and hold it to a number of threads."""
        raise NotImplementedError

    def version(self) -> str:
        """Return the installed version."""
        return importlib.metadata.version(self.distribution)

    def forms(self, op: Operation) -> dict[str, Callable[..., Any]]:
        """Return the ways this peer can do ``op``, by name; empty where it cannot."""
        key = op.id.replace("[", "_").replace("]", "")
        names = [n for n in dir(self) if n == key or n.startswith(key + "__")]
        return {n[len(key) :].strip("_"): getattr(self, n) for n in names}

    def begin_case(self) -> None:
        """Forget what was compiled for the case before."""

    def bind(
        self, form: Callable[..., Any], operands: tuple[np.ndarray, ...], out: np.ndarray, scratch: list[np.ndarray]
    ) -> Call:
        """Return the call that is timed."""
        return lambda: form(*operands, out, *scratch)


class FastKL(Peer):
    """Ours, through its public functions."""

    name = "fastkl"
    distribution = "fastkl"

    def load(self, threads: int) -> None:
        self.library = importlib.import_module("fastkl")
        self.threads = threads

    def version(self) -> str:
        return str(self.library.build_info()["version"])

    def forms(self, op: Operation) -> dict[str, Callable[..., Any]]:
        function = getattr(self.library, op.function)

        def call(*arrays: np.ndarray) -> Any:
            operands, out = arrays[: len(op.operands)], arrays[len(op.operands)]
            return function(*operands, out=out, n_threads=self.threads, **op.keywords)

        return {"": call}


class NumPy(Peer):
    """The formulas with every temporary in a reused buffer; the last product and sum are one einsum."""

    name = "NumPy"
    distribution = "numpy"

    def load(self, threads: int) -> None:
        pass

    def _shifted_exp(self, x, s, e):
        """Leave x - max in s and its exp in e; return the maxima."""
        m = x.max(axis=1, keepdims=True)
        np.subtract(x, m, out=s)
        np.exp(s, out=e)
        return m

    def logsumexp(self, x, out, s, t):
        m = self._shifted_exp(x, s, s)
        np.log(s.sum(axis=1), out=out)
        out += m[:, 0]
        return out

    def softmax(self, x, out, s, t):
        self._shifted_exp(x, out, out)
        out /= out.sum(axis=1, keepdims=True)
        return out

    def log_softmax(self, x, out, s, t):
        self._shifted_exp(x, out, s)
        out -= np.log(s.sum(axis=1, keepdims=True))
        return out

    def softmax_cross_entropy(self, x, labels, out, s, t):
        self.logsumexp(x, out, s, t)
        out -= np.take_along_axis(x, labels[:, None], axis=1)[:, 0]
        return out

    def entropy(self, p, out, s, t):
        np.log(p, out=s)
        np.einsum("ij,ij->i", p, s, out=out)
        return np.negative(out, out=out)

    def entropy_logits(self, x, out, s, t):
        self._shifted_exp(x, s, t)
        total = t.sum(axis=1)
        np.einsum("ij,ij->i", t, s, out=out)
        out /= total
        return np.subtract(np.log(total), out, out=out)

    def cross_entropy(self, p, q, out, s, t):
        np.log(q, out=s)
        np.einsum("ij,ij->i", p, s, out=out)
        return np.negative(out, out=out)

    def kl_divergence(self, p, q, out, s, t):
        np.divide(p, q, out=s)
        np.log(s, out=s)
        return np.einsum("ij,ij->i", p, s, out=out)

    def kl_divergence_normalize(self, p, q, out, s, t):
        total_p, total_q = p.sum(axis=1), q.sum(axis=1)
        self.kl_divergence(p, q, out, s, t)
        out /= total_p
        out += np.log(total_q / total_p)
        return out

    def generalized_kl(self, p, q, out, s, t):
        self.kl_divergence(p, q, out, s, t)
        out += q.sum(axis=1)
        out -= p.sum(axis=1)
        return out

    def js_divergence(self, p, q, out, s, t):
        np.add(p, q, out=t)
        t *= 0.5
        np.divide(p, t, out=s)
        np.log(s, out=s)
        np.einsum("ij,ij->i", p, s, out=out)
        np.divide(q, t, out=s)
        np.log(s, out=s)
        out += np.einsum("ij,ij->i", q, s)
        out *= 0.5
        return out

    def jeffreys_divergence(self, p, q, out, s, t):
        np.divide(p, q, out=s)
        np.log(s, out=s)
        np.subtract(p, q, out=t)
        return np.einsum("ij,ij->i", s, t, out=out)

    def hellinger_distance(self, p, q, out, s, t):
        np.sqrt(p, out=s)
        np.sqrt(q, out=t)
        s -= t
        np.einsum("ij,ij->i", s, s, out=out)
        out *= 0.5
        return np.sqrt(out, out=out)

    def bhattacharyya_distance(self, p, q, out, s, t):
        np.sqrt(p, out=s)
        np.sqrt(q, out=t)
        np.einsum("ij,ij->i", s, t, out=out)
        return np.negative(np.log(out, out=out), out=out)

    def total_variation(self, p, q, out, s, t):
        np.abs(np.subtract(p, q, out=s), out=s).sum(axis=1, out=out)
        out *= 0.5
        return out

    def chi2_divergence(self, p, q, out, s, t):
        np.subtract(p, q, out=s)
        np.divide(s, q, out=t)
        return np.einsum("ij,ij->i", s, t, out=out)

    def triangular_discrimination(self, p, q, out, s, t):
        np.subtract(p, q, out=s)
        np.divide(s, np.add(p, q, out=t), out=t)
        return np.einsum("ij,ij->i", s, t, out=out)

    def logcumsumexp(self, x, out, s, t):
        return np.logaddexp.accumulate(x, axis=1, out=out)

    def perplexity(self, p, out, s, t):
        return np.exp(self.entropy(p, out, s, t), out=out)

    def wasserstein_1d(self, p, q, out, s, t):
        np.cumsum(np.subtract(p, q, out=s), axis=1, out=t)
        return np.abs(t[:, :-1], out=t[:, :-1]).sum(axis=1, out=out)

    def binary_cross_entropy_logits(self, x, y, out, s, t):
        np.logaddexp(0, x, out=s)
        s -= np.multiply(x, y, out=t)
        return s


class SciPy(Peer):
    """The library's own functions where it has one, its elementwise functions and a sum where not."""

    name = "SciPy"
    distribution = "scipy"

    def load(self, threads: int) -> None:
        self.special = importlib.import_module("scipy.special")
        self.stats = importlib.import_module("scipy.stats")
        self.distance = importlib.import_module("scipy.spatial.distance")

    def logsumexp(self, x, out, s, t):
        return self.special.logsumexp(x, axis=1)

    def softmax(self, x, out, s, t):
        return self.special.softmax(x, axis=1)

    def log_softmax(self, x, out, s, t):
        return self.special.log_softmax(x, axis=1)

    def softmax_cross_entropy(self, x, labels, out, s, t):
        return self.special.logsumexp(x, axis=1) - np.take_along_axis(x, labels[:, None], axis=1)[:, 0]

    def entropy(self, p, out, s, t):
        return self.special.entr(p, out=s).sum(axis=1, out=out)

    def entropy_logits(self, x, out, s, t):
        return self.special.entr(self.special.softmax(x, axis=1), out=s).sum(axis=1, out=out)

    def cross_entropy(self, p, q, out, s, t):
        return np.negative(self.special.xlogy(p, q, out=s).sum(axis=1, out=out), out=out)

    def kl_divergence(self, p, q, out, s, t):
        return self.special.rel_entr(p, q, out=s).sum(axis=1, out=out)

    def kl_divergence_normalize(self, p, q, out, s, t):
        return self.stats.entropy(p, q, axis=1)

    def generalized_kl(self, p, q, out, s, t):
        return self.special.kl_div(p, q, out=s).sum(axis=1, out=out)

    def js_divergence(self, p, q, out, s, t):
        np.add(p, q, out=t)
        t *= 0.5
        self.special.rel_entr(p, t, out=s).sum(axis=1, out=out)
        out += self.special.rel_entr(q, t, out=s).sum(axis=1)
        out *= 0.5
        return out

    def js_distance_normalize(self, p, q, out, s, t):
        return self.distance.jensenshannon(p, q, axis=1)


class Torch(Peer):
    """Eager, with ``out=`` and buffers wherever the function has them."""

    name = "PyTorch"
    distribution = "torch"

    def load(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.functional = importlib.import_module("torch.nn.functional")
        self.torch.set_num_threads(threads)

    def bind(self, form, operands, out, scratch):
        tensors = [self.torch.from_numpy(a) for a in (*operands, out, *scratch)]

        def call():
            with self.torch.inference_mode():
                return form(*tensors)

        return call

    def logsumexp(self, x, out, s, t):
        return self.torch.logsumexp(x, 1, out=out)

    def softmax(self, x, out, s, t):
        return self.torch.softmax(x, 1, out=out)

    def log_softmax(self, x, out, s, t):
        return self.torch.log_softmax(x, 1, out=out)

    def softmax_cross_entropy(self, x, labels, out, s, t):
        return self.functional.cross_entropy(x, labels, reduction="none")

    def entropy(self, p, out, s, t):
        return self.torch.sum(self.torch.special.entr(p, out=s), 1, out=out)

    def entropy_logits(self, x, out, s, t):
        self.torch.log_softmax(x, 1, out=s)
        self.torch.exp(s, out=t)
        return self.torch.sum(t.mul_(s), 1, out=out).neg_()

    def cross_entropy(self, p, q, out, s, t):
        return self.torch.sum(self.torch.log(q, out=s).mul_(p), 1, out=out).neg_()

    def kl_divergence(self, p, q, out, s, t):
        return self.torch.sum(self.torch.div(p, q, out=s).log_().mul_(p), 1, out=out)

    def kl_divergence_normalize(self, p, q, out, s, t):
        total_p, total_q = self.torch.sum(p, 1), self.torch.sum(q, 1)
        return self.kl_divergence(p, q, out, s, t).div_(total_p).add_(total_q.div_(total_p).log_())

    def generalized_kl(self, p, q, out, s, t):
        return self.kl_divergence(p, q, out, s, t).add_(self.torch.sum(q, 1)).sub_(self.torch.sum(p, 1))

    def js_divergence(self, p, q, out, s, t):
        self.torch.add(p, q, out=t).mul_(0.5)
        self.torch.sum(self.torch.div(p, t, out=s).log_().mul_(p), 1, out=out)
        return out.add_(self.torch.div(q, t, out=s).log_().mul_(q).sum(1)).mul_(0.5)

    def logcumsumexp(self, x, out, s, t):
        return self.torch.logcumsumexp(x, 1, out=out)

    def perplexity(self, p, out, s, t):
        return self.entropy(p, out, s, t).exp_()

    def wasserstein_1d(self, p, q, out, s, t):
        self.torch.cumsum(self.torch.sub(p, q, out=s), 1, out=t)
        return self.torch.sum(t[:, :-1].abs_(), 1, out=out)

    def binary_cross_entropy(self, p, y, out, s, t):
        return self.functional.binary_cross_entropy(p, y, reduction="none")

    def binary_cross_entropy_logits(self, x, y, out, s, t):
        return self.functional.binary_cross_entropy_with_logits(x, y, reduction="none")


class TorchCompile(Peer):
    """``torch.compile`` (inductor) of the plain expression, for the one shape at hand, timed when it is warm."""

    name = "torch.compile"
    distribution = "torch"

    def load(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.functional = importlib.import_module("torch.nn.functional")
        self.torch.set_num_threads(threads)
        self.compiled: dict[str, Any] = {}

    def begin_case(self) -> None:
        # Dynamo falls back to eager after a few shapes of one function: each case starts afresh.
        self.torch._dynamo.reset()
        self.compiled.clear()

    def bind(self, form, operands, out, scratch):
        tensors = [self.torch.from_numpy(a) for a in (*operands, out)]
        key = form.__name__
        if key not in self.compiled:
            self.compiled[key] = self.torch.compile(form, dynamic=False, fullgraph=True)
        compiled = self.compiled[key]

        def call():
            with self.torch.inference_mode():
                return compiled(*tensors)

        return call

    def logsumexp(self, x, out):
        return self.torch.logsumexp(x, 1)

    def softmax(self, x, out):
        return out.copy_(self.torch.softmax(x, 1))

    def softmax__fresh(self, x, out):
        return self.torch.softmax(x, 1)

    def log_softmax(self, x, out):
        return out.copy_(self.torch.log_softmax(x, 1))

    def log_softmax__fresh(self, x, out):
        return self.torch.log_softmax(x, 1)

    def binary_cross_entropy(self, p, y, out):
        return self.functional.binary_cross_entropy(p, y, reduction="none")

    def binary_cross_entropy_logits(self, x, y, out):
        return self.functional.binary_cross_entropy_with_logits(x, y, reduction="none")

    def softmax_cross_entropy(self, x, labels, out):
        return self.functional.cross_entropy(x, labels, reduction="none")

    def softmax_cross_entropy__lse(self, x, labels, out):
        return self.torch.logsumexp(x, 1) - x.gather(1, labels[:, None])[:, 0]

    def entropy(self, p, out):
        return -(p * self.torch.log(p)).sum(1)

    def entropy_logits(self, x, out):
        shifted = x - x.amax(1, keepdim=True)
        e = self.torch.exp(shifted)
        total = e.sum(1)
        return self.torch.log(total) - (e * shifted).sum(1) / total

    def cross_entropy(self, p, q, out):
        return -(p * self.torch.log(q)).sum(1)

    def kl_divergence(self, p, q, out):
        return (p * self.torch.log(p / q)).sum(1)

    def kl_divergence__log_difference(self, p, q, out):
        return (p * (self.torch.log(p) - self.torch.log(q))).sum(1)

    def kl_divergence_normalize(self, p, q, out):
        total_p, total_q = p.sum(1), q.sum(1)
        return (p * self.torch.log(p / q)).sum(1) / total_p + self.torch.log(total_q / total_p)

    def generalized_kl(self, p, q, out):
        return (p * self.torch.log(p / q) - p + q).sum(1)

    def js_divergence(self, p, q, out):
        m = (p + q) * 0.5
        return (p * self.torch.log(p / m) + q * self.torch.log(q / m)).sum(1) * 0.5

    def js_divergence__log_difference(self, p, q, out):
        log_m = self.torch.log((p + q) * 0.5)
        return (p * (self.torch.log(p) - log_m) + q * (self.torch.log(q) - log_m)).sum(1) * 0.5

    def js_divergence__two_logs(self, p, q, out):
        ratio = p / q
        return (p * self.torch.log(ratio) - (p + q) * self.torch.log((1 + ratio) * 0.5)).sum(1) * 0.5

    def jeffreys_divergence(self, p, q, out):
        return ((p - q) * self.torch.log(p / q)).sum(1)

    def hellinger_distance(self, p, q, out):
        return self.torch.sqrt((self.torch.sqrt(p) - self.torch.sqrt(q)).square().sum(1) * 0.5)

    def bhattacharyya_distance(self, p, q, out):
        return -self.torch.log(self.torch.sqrt(p * q).sum(1))

    def total_variation(self, p, q, out):
        return (p - q).abs().sum(1) * 0.5

    def chi2_divergence(self, p, q, out):
        return ((p - q).square() / q).sum(1)

    def triangular_discrimination(self, p, q, out):
        return ((p - q).square() / (p + q)).sum(1)


class JAX(Peer):
    """``jax.jit`` on the CPU; an N x C result goes into the donated buffer of the result before it."""

    name = "JAX"
    distribution = "jax"

    def load(self, threads: int) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.jnp = importlib.import_module("jax.numpy")
        self.compiled: dict[str, Any] = {}

    def begin_case(self) -> None:
        self.compiled.clear()
        self.jax.clear_caches()

    def bind(self, form, operands, out, scratch):
        arrays = [self.jax.dlpack.from_dlpack(a) for a in operands]
        key = form.__name__
        if key not in self.compiled:
            with_donated = lambda *a: form(*a[:-1])  # noqa: E731
            donated = len(operands) if out.ndim == 2 else ()
            self.compiled[key] = self.jax.jit(with_donated, donate_argnums=donated, keep_unused=True)
        compiled = self.compiled[key]
        before = self.jnp.zeros(out.shape if out.ndim == 2 else (), out.dtype)

        def call():
            nonlocal before
            result = compiled(*arrays, before).block_until_ready()
            if out.ndim == 2:
                before = result
            return result

        return call

    def logsumexp(self, x):
        return self.jax.nn.logsumexp(x, axis=1)

    def softmax(self, x):
        return self.jax.nn.softmax(x, axis=1)

    def log_softmax(self, x):
        return self.jax.nn.log_softmax(x, axis=1)

    def softmax_cross_entropy(self, x, labels):
        return self.jax.nn.logsumexp(x, axis=1) - self.jnp.take_along_axis(x, labels[:, None], axis=1)[:, 0]

    def entropy(self, p):
        return -self.jnp.sum(p * self.jnp.log(p), axis=1)

    def entropy_logits(self, x):
        shifted = x - self.jnp.max(x, axis=1, keepdims=True)
        e = self.jnp.exp(shifted)
        total = self.jnp.sum(e, axis=1)
        return self.jnp.log(total) - self.jnp.sum(e * shifted, axis=1) / total

    def cross_entropy(self, p, q):
        return -self.jnp.sum(p * self.jnp.log(q), axis=1)

    def kl_divergence(self, p, q):
        return self.jnp.sum(p * self.jnp.log(p / q), axis=1)

    def kl_divergence__log_difference(self, p, q):
        return self.jnp.sum(p * (self.jnp.log(p) - self.jnp.log(q)), axis=1)

    def kl_divergence_normalize(self, p, q):
        total_p, total_q = self.jnp.sum(p, axis=1), self.jnp.sum(q, axis=1)
        return self.jnp.sum(p * self.jnp.log(p / q), axis=1) / total_p + self.jnp.log(total_q / total_p)

    def generalized_kl(self, p, q):
        return self.jnp.sum(p * self.jnp.log(p / q) - p + q, axis=1)

    def js_divergence(self, p, q):
        m = (p + q) * 0.5
        return self.jnp.sum(p * self.jnp.log(p / m) + q * self.jnp.log(q / m), axis=1) * 0.5

    def js_divergence__two_logs(self, p, q):
        ratio = p / q
        return self.jnp.sum(p * self.jnp.log(ratio) - (p + q) * self.jnp.log((1 + ratio) * 0.5), axis=1) * 0.5


class Numba(Peer):
    """One ``njit(parallel=True, fastmath=True)`` loop nest for each operation, ``prange`` over the rows."""

    name = "Numba"
    distribution = "numba"

    def load(self, threads: int) -> None:
        numba = importlib.import_module("numba")
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        self.jit = numba.njit(parallel=True, fastmath=True, error_model="numpy")
        self.prange = numba.prange
        self.compiled: dict[str, Any] = {}

    def bind(self, form, operands, out, scratch):
        # A form returns the Python function that is compiled: a method cannot be.
        if form.__name__ not in self.compiled:
            self.compiled[form.__name__] = self.jit(form(self.prange))
        compiled = self.compiled[form.__name__]

        def call():
            compiled(*operands, out)
            return out

        return call

    def logsumexp(self, prange):
        def kernel(x, out):
            for i in prange(x.shape[0]):
                m = x[i, 0]
                for j in range(1, x.shape[1]):
                    m = max(m, x[i, j])
                total = x.dtype.type(0)
                for j in range(x.shape[1]):
                    total += np.exp(x[i, j] - m)
                out[i] = m + np.log(total)

        return kernel

    def softmax(self, prange):
        def kernel(x, out):
            for i in prange(x.shape[0]):
                m = x[i, 0]
                for j in range(1, x.shape[1]):
                    m = max(m, x[i, j])
                total = x.dtype.type(0)
                for j in range(x.shape[1]):
                    e = np.exp(x[i, j] - m)
                    out[i, j] = e
                    total += e
                scale = 1 / total
                for j in range(x.shape[1]):
                    out[i, j] *= scale

        return kernel

    def log_softmax(self, prange):
        def kernel(x, out):
            for i in prange(x.shape[0]):
                m = x[i, 0]
                for j in range(1, x.shape[1]):
                    m = max(m, x[i, j])
                total = x.dtype.type(0)
                for j in range(x.shape[1]):
                    total += np.exp(x[i, j] - m)
                lse = m + np.log(total)
                for j in range(x.shape[1]):
                    out[i, j] = x[i, j] - lse

        return kernel

    def softmax_cross_entropy(self, prange):
        def kernel(x, labels, out):
            for i in prange(x.shape[0]):
                m = x[i, 0]
                for j in range(1, x.shape[1]):
                    m = max(m, x[i, j])
                total = x.dtype.type(0)
                for j in range(x.shape[1]):
                    total += np.exp(x[i, j] - m)
                out[i] = m + np.log(total) - x[i, labels[i]]

        return kernel

    def entropy(self, prange):
        def kernel(p, out):
            for i in prange(p.shape[0]):
                total = p.dtype.type(0)
                for j in range(p.shape[1]):
                    total -= p[i, j] * np.log(p[i, j])
                out[i] = total

        return kernel

    def entropy_logits(self, prange):
        def kernel(x, out):
            for i in prange(x.shape[0]):
                m = x[i, 0]
                for j in range(1, x.shape[1]):
                    m = max(m, x[i, j])
                total = x.dtype.type(0)
                weighted = x.dtype.type(0)
                for j in range(x.shape[1]):
                    e = np.exp(x[i, j] - m)
                    total += e
                    weighted += e * (x[i, j] - m)
                out[i] = np.log(total) - weighted / total

        return kernel

    def cross_entropy(self, prange):
        def kernel(p, q, out):
            for i in prange(p.shape[0]):
                total = p.dtype.type(0)
                for j in range(p.shape[1]):
                    total -= p[i, j] * np.log(q[i, j])
                out[i] = total

        return kernel

    def kl_divergence(self, prange):
        def kernel(p, q, out):
            for i in prange(p.shape[0]):
                total = p.dtype.type(0)
                for j in range(p.shape[1]):
                    total += p[i, j] * np.log(p[i, j] / q[i, j])
                out[i] = total

        return kernel

    def kl_divergence_normalize(self, prange):
        def kernel(p, q, out):
            for i in prange(p.shape[0]):
                total = p.dtype.type(0)
                total_p = p.dtype.type(0)
                total_q = p.dtype.type(0)
                for j in range(p.shape[1]):
                    total += p[i, j] * np.log(p[i, j] / q[i, j])
                    total_p += p[i, j]
                    total_q += q[i, j]
                out[i] = total / total_p + np.log(total_q / total_p)

        return kernel

    def generalized_kl(self, prange):
        def kernel(p, q, out):
            for i in prange(p.shape[0]):
                total = p.dtype.type(0)
                for j in range(p.shape[1]):
                    total += p[i, j] * np.log(p[i, j] / q[i, j]) - p[i, j] + q[i, j]
                out[i] = total

        return kernel


class ONNXRuntime(Peer):
    """One-node models, inputs and outputs bound to our arrays; SoftmaxCrossEntropyLoss is expanded by the runtime."""

    name = "ONNX Runtime"
    distribution = "onnxruntime"
    opset = 17

    def load(self, threads: int) -> None:
        self.runtime = importlib.import_module("onnxruntime")
        self.onnx = importlib.import_module("onnx")
        self.threads = threads

    def bind(self, form, operands, out, scratch):
        node, names, attributes = form()
        helper = self.onnx.helper
        try:
            values = [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in zip((*names, "out"), (*operands, out), strict=True)
            ]
        except KeyError as error:
            raise Refused(f"no tensor type for {error}") from error
        graph = helper.make_graph(
            [helper.make_node(node, list(names), ["out"], **attributes)], node, values[:-1], values[-1:]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        try:
            session = self.runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's own exception types are not public
            raise Refused(str(error).splitlines()[0]) from error
        binding = session.io_binding()
        for n, a in zip(names, operands, strict=True):
            binding.bind_input(n, "cpu", 0, a.dtype.type, a.shape, a.ctypes.data)
        binding.bind_output("out", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

        def call():
            session.run_with_iobinding(binding)
            return out

        return call

    def logsumexp(self):
        return "ReduceLogSumExp", ("x",), {"axes": [1], "keepdims": 0}

    def softmax(self):
        return "Softmax", ("x",), {"axis": 1}

    def log_softmax(self):
        return "LogSoftmax", ("x",), {"axis": 1}

    def softmax_cross_entropy(self):
        return "SoftmaxCrossEntropyLoss", ("x", "labels"), {"reduction": "none"}


class NumKong(Peer):
    """``kullbackleibler`` of two matrices row by row; it adds an epsilon to both sides and has no threads."""

    name = "NumKong"
    distribution = "numkong"

    def load(self, threads: int) -> None:
        self.library = importlib.import_module("numkong")

    def bind(self, form, operands, out, scratch):
        # It writes float64 whatever it reads.
        double = np.empty(out.shape)
        return lambda: form(*operands, double)

    def kl_divergence(self, p, q, out):
        self.library.kullbackleibler(p, q, out=out)
        return out


OURS = FastKL
PEERS: tuple[type[Peer], ...] = (NumPy, SciPy, Torch, TorchCompile, JAX, Numba, ONNXRuntime, NumKong)
