"""f-divergences of any generator, and the bounds of divergences from a critic's scores."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastkl as fk
from fastkl import reference, variational

INF, NAN = math.inf, math.nan
both = pytest.mark.parametrize("module", [fk, reference], ids=["kernels", "reference"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
names = pytest.mark.parametrize("name", variational.GENERATORS)


def simplex(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    draw = rng.gamma(1.0, size=shape) + 1e-6
    return (draw / draw.sum(axis=-1, keepdims=True)).astype(dtype)


# ---- f_divergence ------------------------------------------------------------------------------------------------


@names
@dtypes
@pytest.mark.parametrize("normalize", [False, True])
def test_named_as_the_formula(name: str, dtype: str, normalize: bool, rng: np.random.Generator) -> None:
    """The named function, the generator as a callable, and the reference."""
    f, f_at_0, slope_at_inf = reference._GENERATORS[name]
    limits = {"f_at_0": f_at_0, "slope_at_inf": slope_at_inf}
    p, q = simplex((6, 40), dtype, rng), simplex((6, 40), dtype, rng)
    p[1, 3] = q[2, 5] = p[3, 7] = q[3, 7] = 0
    p[4, 0] = NAN
    if normalize:
        p, q = 3 * p, q / 7
    keywords: dict[str, Any] = {"normalize": normalize, "where": rng.random(40) < 0.8, "keepdims": True}
    got = fk.f_divergence(p, q, name, **keywords)
    assert (got.shape, got.dtype) == ((6, 1), dtype)
    for right in (
        fk.f_divergence(p, q, f, **limits, **keywords),
        reference.f_divergence(p, q, name, **keywords),
        reference.f_divergence(p, q, f, **limits, **keywords),
    ):
        assert (right.shape, right.dtype) == (got.shape, got.dtype)
        np.testing.assert_allclose(got, right, rtol=2e-6 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("shape", [(3, 5), (70_000,), (2, 140_001), (300, 700), (40_000, 3), (2, 3, 400)])
def test_callable_over_blocks(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Few large calls, ratios that are finite and above 0, and a row's result whatever the batch and the layout."""
    p, q = rng.gamma(1.0, size=shape), rng.gamma(1.0, size=shape)
    p[..., 0] = 0
    calls = []

    def f(t: np.ndarray) -> np.ndarray:
        assert t.dtype == np.float64
        assert ((t > 0) & np.isfinite(t)).all()
        calls.append(t.size)
        return (t - 1) ** 2

    got = fk.f_divergence(p, q, f, f_at_0=1.0)
    assert sum(calls) == p.size
    assert max(calls) <= 65536
    assert len(calls) <= 2 + p.size // 32768
    right = reference.f_divergence(p, q, f, f_at_0=1.0)
    np.testing.assert_allclose(got, right, rtol=1e-12)
    rows = [v.reshape(-1, shape[-1]) for v in (p, q)]
    for i in rng.choice(len(rows[0]), 3):
        assert fk.f_divergence(rows[0][i], rows[1][i], f, f_at_0=1.0).tobytes() == got.reshape(-1)[i].tobytes()
    apart = [np.asfortranarray(np.repeat(v, 2, -1)[..., ::2]) for v in (p, q)]
    assert fk.f_divergence(*apart, f, f_at_0=1.0).tobytes() == got.tobytes()
    every = fk.f_divergence(p, q, f, f_at_0=1.0, axis=None)
    assert every == pytest.approx(got.sum(), rel=1e-12)
    assert fk.f_divergence(p.T, q.T, f, f_at_0=1.0, axis=0).T.tobytes() == got.tobytes()


@both
def test_zeros_need_limits(module: ModuleType) -> None:
    def f(t: Any) -> Any:
        return abs(t - 1) / 2

    p, q = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="f_at_0"):
        module.f_divergence(p, q, f)
    with pytest.raises(ValueError, match="slope_at_inf"):
        module.f_divergence(q, p, f)
    assert module.f_divergence(p, q, f, f_at_0=0.5).tolist() == [0.0, 0.5, 0.5]
    assert module.f_divergence(q, p, f, slope_at_inf=0.5).tolist() == [0.0, 0.5, 0.5]
    assert module.f_divergence(p, q, f, f_at_0=INF).tolist() == [0.0, INF, INF]
    assert module.f_divergence(p, q, f, where=(p > 0) & (q > 0)).tolist() == [0.0, 0.25, 0.25]
    assert module.f_divergence([0.0, 0.0], [0.0, 0.0], f) == 0
    assert module.f_divergence([], [], f) == 0
    for bad in (-0.5, -1e-300, INF, NAN):
        assert math.isnan(module.f_divergence([bad, 0.0], [0.5, 0.5], f))
        assert math.isnan(module.f_divergence([0.5, 0.0], [bad, 0.5], f))
        assert module.f_divergence([bad, 1.0], [0.5, 1.0], f, where=[False, True]) == 0
    assert math.isnan(module.f_divergence([0.0, 0.0], [0.5, 0.5], f, f_at_0=0.5, normalize=True))


def test_what_a_zero_is_named_by() -> None:
    p, q = np.full((2, 3, 4), 0.25), np.full((2, 3, 4), 0.25)
    p[1, 2, 3] = 0
    out = np.full((2, 3), 77.0)
    with pytest.raises(ValueError, match=r"row \(1, 2\) has p = 0 where q > 0: f needs f_at_0="):
        fk.f_divergence(p, q, np.log, out=out)
    assert (out == 77).all()
    with pytest.raises(ValueError, match="row 5 has q = 0 where p > 0: f needs slope_at_inf="):
        fk.f_divergence(q.reshape(6, 4), p.reshape(6, 4), np.log)
    with pytest.raises(ValueError, match="the only row has q = 0"):
        fk.f_divergence([1.0], [0.0], np.log)


def test_ratios_beyond_the_type() -> None:
    """Are taken as the largest and the least: f sees no 0 and no infinity."""
    seen = []
    fk.f_divergence([1.0, 5e-324], [5e-324, 1.0], lambda t: seen.append(t.copy()) or t - 1)
    limits = np.finfo(np.float64)
    assert seen[0].tolist() == [[limits.max, limits.tiny]]


def test_f_divergence_refused() -> None:
    p = np.full((3, 4), 0.25)
    for f, error, said in (
        (1.0, TypeError, "callable"),
        (None, TypeError, "callable"),
        ("KL", ValueError, "'kl'.*'KL'"),
        (lambda t: t.sum(), ValueError, "shape"),
        (lambda t: t[:, :1], ValueError, "shape"),
    ):
        with pytest.raises(error, match=said):
            fk.f_divergence(p, p, f)
    with pytest.raises(ValueError, match="f_at_0 is for a callable"):
        fk.f_divergence(p, p, "kl", f_at_0=0.0)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(5,\)"):
        fk.f_divergence(p, np.ones(5), np.log)
    with pytest.raises(TypeError, match="complex"):
        fk.f_divergence(p.astype(complex), p, np.log)
    with pytest.raises(ValueError, match="n_threads"):
        fk.f_divergence(p, p, np.log, n_threads=0)
    with pytest.raises(ValueError, match="out"):
        fk.f_divergence(p, p, np.log, out=p[:, 0])
    with pytest.raises(ZeroDivisionError):
        fk.f_divergence(p, p, lambda t: 1 / 0)


# ---- variational_bound -------------------------------------------------------------------------------------------

#: The critic that makes each bound tight: f' of the ratio.
SLOPES: dict[str, Any] = {
    "kl": lambda u: 1 + np.log(u),
    "reverse_kl": lambda u: -1 / u,
    "js": lambda u: np.log(2 * u / (1 + u)) / 2,
    "hellinger": lambda u: (1 - 1 / np.sqrt(u)) / 2,
    "tv": lambda u: np.sign(u - 1) / 2,
    "chi2": lambda u: 2 * (u - 1),
    "neyman": lambda u: 1 - 1 / u**2,
    "triangular": lambda u: 1 - 4 / (1 + u) ** 2,
}


@both
@pytest.mark.parametrize("f", SLOPES)
def test_tight_at_its_critic_and_below_elsewhere(f: str, module: ModuleType, rng: np.random.Generator) -> None:
    """Over distributions of equal parts, so that the means over samples are the sums over classes."""
    for _ in range(20):
        counts_p, counts_q = rng.integers(1, 9, 12), rng.integers(1, 9, 12)
        p, q = counts_p / counts_p.sum(), counts_q / counts_q.sum()
        critic = SLOPES[f](p / q)
        bound = module.variational_bound(np.repeat(critic, counts_p), np.repeat(critic, counts_q), f)
        right = fk.f_divergence(p, q, f)
        assert bound == pytest.approx(right, rel=1e-9, abs=1e-12)
        for scale in (1e-3, 0.1, 1.0):
            other = critic + scale * rng.normal(size=12)
            bound = module.variational_bound(np.repeat(other, counts_p), np.repeat(other, counts_q), f)
            assert bound <= right + 1e-12


@both
def test_bounds_of_kl(module: ModuleType, rng: np.random.Generator) -> None:
    t_p, t_q = rng.normal(size=(5, 400)) + 1, rng.normal(size=(5, 300))
    nwj, gan, dv = (module.variational_bound(t_p, t_q, bound=bound) for bound in ("nwj", "f-gan", "dv"))
    assert nwj.tobytes() == gan.tobytes()
    np.testing.assert_allclose(nwj, t_p.mean(-1) - np.exp(t_q).mean(-1) / math.e, rtol=1e-12)
    np.testing.assert_allclose(dv, t_p.mean(-1) - np.log(np.exp(t_q).mean(-1)), rtol=1e-12)
    assert (dv >= nwj).all()
    np.testing.assert_allclose(module.variational_bound(t_p + 5000, t_q + 5000, bound="dv"), dv, rtol=1e-9)
    assert (module.variational_bound(t_p, t_q + 5000, bound="nwj") == -INF).all()
    down = module.variational_bound(t_p.T, t_q.T, bound="dv", axis=0)
    np.testing.assert_allclose(down, dv, rtol=1e-12)
    one = module.variational_bound(t_p[0], t_q, bound="dv")
    assert one.shape == (5,)
    assert one[0] == dv[0]


@both
@dtypes
def test_infonce(dtype: str, module: ModuleType, rng: np.random.Generator) -> None:
    scores = rng.normal(size=(3, 50, 50)).astype(dtype)
    got = module.variational_bound(scores, bound="infonce")
    assert (got.shape, got.dtype) == ((3,), dtype)
    x = scores.astype(np.float64)
    diagonal = np.diagonal(x, axis1=-2, axis2=-1) - np.log(np.exp(x).sum(-1))
    np.testing.assert_allclose(got, diagonal.mean(-1) + math.log(50), rtol=1e-5)
    best = module.variational_bound(1e4 * np.eye(50, dtype=dtype), bound="infonce")
    assert best == np.dtype(dtype).type(math.log(50))
    assert module.variational_bound(np.ones((7, 7), dtype), bound="infonce") == pytest.approx(0, abs=1e-6)


@both
@pytest.mark.parametrize(
    ("f", "t", "expected"),
    [
        ("reverse_kl", 0.0, -INF), ("reverse_kl", 1.0, -INF), ("reverse_kl", -1.0, 1.0),
        ("js", math.log(2) / 2, -INF), ("js", 5.0, -INF), ("js", 0.0, 0.0), ("js", -INF, math.log(2) / 2),
        ("hellinger", 0.5, -INF), ("hellinger", 0.0, 0.0), ("hellinger", -INF, 0.5),
        ("tv", 0.6, -INF), ("tv", 0.5, -0.5), ("tv", -7.0, 0.5), ("tv", -INF, 0.5),
        ("chi2", 1.0, -1.25), ("chi2", -2.0, 1.0), ("chi2", -INF, 1.0), ("chi2", INF, -INF),
        ("neyman", 1.0, -2.0), ("neyman", 1.1, -INF), ("neyman", 0.0, 0.0), ("neyman", -INF, INF),
        ("triangular", 1.0, -3.0), ("triangular", 1.1, -INF), ("triangular", -3.0, 1.0), ("triangular", -9.0, 1.0),
        ("kl", -INF, 0.0), ("kl", 1.0, -1.0), ("kl", INF, -INF),
        *[(f, NAN, NAN) for f in SLOPES],
    ],
)  # fmt: skip
def test_conjugates_at_their_ends(f: str, t: float, expected: float, module: ModuleType) -> None:
    got = module.variational_bound([0.0], [t], f)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@both
def test_means_of_nothing(module: ModuleType) -> None:
    with np.errstate(all="ignore"):
        if module is fk:
            assert math.isnan(fk.variational_bound([], [1.0], bound="dv"))
            assert math.isnan(fk.variational_bound([1.0], [], "tv"))
            assert fk.variational_bound(np.zeros((0, 3)), np.zeros((0, 2)), bound="dv").shape == (0,)
        assert math.isnan(module.variational_bound([NAN], [1.0], bound="dv"))
        assert module.variational_bound([-INF], [1.0], bound="dv") == -INF


def test_variational_bound_refused() -> None:
    t = np.ones((3, 4))
    for keywords, said in (
        ({"bound": "mine"}, "bound"),
        ({"f": "jeffreys"}, "f takes"),
        ({"bound": "dv", "f": "js"}, "'dv' is of KL"),
        ({"bound": "infonce", "t_q": t}, "no t_q"),
        ({"bound": "infonce"}, r"\(3, 4\).*N x N"),
        ({"bound": "dv"}, "needs t_q"),
        ({"bound": "dv", "t_q": np.ones((5, 4))}, r"\(3,\).*\(5,\)"),
        ({"t_q": t, "n_threads": 0}, "n_threads"),
    ):
        with pytest.raises(ValueError, match=said):
            fk.variational_bound(t, **keywords)
    with pytest.raises(TypeError, match="axis"):
        fk.variational_bound(t, t, axis=(0, 1))
    with pytest.raises(TypeError, match="complex"):
        fk.variational_bound(t.astype(complex), t)
