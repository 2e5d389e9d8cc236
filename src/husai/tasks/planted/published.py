"""Planted worlds of published benchmarks, each as a function that gives its parameters."""

from __future__ import annotations

from typing import Any

from husai.tasks.planted.config import (
    HierarchyConfig,
    LowRankCopula,
    NearOrthogonalDictionary,
    PlantedConfig,
    RectifiedNormalMagnitude,
    UniformKFiring,
    ZipfFiring,
    ZipfKFiring,
)


def song_world(n_features: int = 16, d_in: int = 8, k: int = 3, **fields: Any) -> PlantedConfig:
    """The synthetic world of Song et al. (arXiv 2505.20254): Gaussian rows, uniform k, |N(0,1)|.

    Parameters
    ----------
    n_features, d_in, k
        Size; the defaults are the paper's matched regime.
    **fields
        Further fields of :class:`PlantedConfig`, for example seeds.
    """
    firing = UniformKFiring(k=k)
    return PlantedConfig(n_features=n_features, d_in=d_in, firing=firing, **fields)


def osae_world(**fields: Any) -> PlantedConfig:
    """The toy world of ordered SAEs (arXiv 2512.02194): d 80, 100 features, 5 per row, Zipf 1.2."""
    firing = ZipfKFiring(k=5, exponent=1.2)
    return PlantedConfig(n_features=100, d_in=80, firing=firing, **fields)


def synth_sae_bench_world(
    n_features: int = 16_384, d_in: int = 768, **fields: Any
) -> PlantedConfig:
    """The SynthSAEBench-16k world, or the same world scaled down.

    Definition from the released code of arXiv 2602.14687 (repository
    ``decoderesearch/synth-sae-bench-experiments``, ``create_synth_bench_16k_model.py``): Zipf
    0.5 from 0.4 to 5e-4, 128 trees of branching 4 and depth 3 with exclusive children, rank-25
    copula of scale 0.1, means 5 → 4, spreads |N(0.5, 0.5²)|, bias of norm 0.5, frame potential
    minimised for 100 steps at 3e-4. The law is the same as theirs; the draw is not, because they
    use another random generator.

    Parameters
    ----------
    n_features, d_in
        Size. One tree for every 128 features, as in the original; at least one.
    **fields
        Further fields of :class:`PlantedConfig`, for example seeds.
    """
    return PlantedConfig(
        n_features=n_features,
        d_in=d_in,
        dictionary=NearOrthogonalDictionary(exponent=2, n_steps=100, learning_rate=3e-4),
        firing=ZipfFiring(exponent=0.5, p_max=0.4, p_min=5e-4, copula=LowRankCopula()),
        hierarchy=HierarchyConfig(n_roots=max(1, n_features // 128)),
        magnitude=RectifiedNormalMagnitude(),
        bias_norm=0.5,
        **fields,
    )
