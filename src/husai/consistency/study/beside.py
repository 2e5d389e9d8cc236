"""Declarations of the tables beside a report: their columns, types, units, ranges and meanings."""

from __future__ import annotations

from dataclasses import replace

from husai.consistency.analyses.matched import AXES
from husai.consistency.scores.score import CLAIM_KINDS
from husai.consistency.study.columns import Table, count, flag, number, share, text
from husai.consistency.study.schema import (
    ARCHITECTURE,
    CONVERGED,
    EVERYWHERE,
    FVU,
    GROUP,
    HOOK,
    INTERVAL,
    L0,
    LIVE,
    REASON,
    SCORE,
    SETTINGS,
    SIGNED,
    SPACE,
    WIDTH,
)

_LEVELS = tuple(number(f"{kind}_mean", f"null {kind}: mean", optional=True) for kind in CLAIM_KINDS)
_SEEDS = count("n_seeds", "SAEs of the group", low=1, optional=True)
_OF_GROUP = (
    GROUP,
    replace(ARCHITECTURE, optional=True),
    replace(WIDTH, optional=True),
    _SEEDS,
    replace(CONVERGED, optional=True),
)
_MATCHED_ON = text("matched_on", "the axis", values=AXES, nullable=True, optional=True)
_AT = number("at", "value of that axis", low=0, optional=True)
_MEAN = tuple(replace(column, optional=True) for column in INTERVAL)

BESIDE: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "settings",
            "A group at the study's main hook, a space and a score, beside its setting.",
            (
                *(GROUP, ARCHITECTURE, WIDTH, *SETTINGS, L0, SPACE, SCORE, SIGNED, *INTERVAL),
                number("width_ratio", "d_sae over the effective rank of the rows", low=0),
                *_LEVELS,
                *(
                    number(f"{kind}_corrected", f"null {kind}: corrected score", high=1.0)
                    for kind in CLAIM_KINDS
                ),
                *(LIVE, EVERYWHERE, FVU, _SEEDS, CONVERGED, REASON),
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "matched",
            "A width, a space, a score, an architecture and a value of the axis on which all "
            "architectures are matched.",
            (
                # missing where no group has what a curve needs
                *(
                    replace(column, nullable=True, optional=True)
                    for column in (WIDTH, SPACE, SCORE, SIGNED, ARCHITECTURE)
                ),
                *(_MATCHED_ON, _AT, *_MEAN),
                *(replace(column, nullable=True, optional=True) for column in (L0, FVU)),
                number("n_live", "latents that take part, mean over SAEs", low=0, optional=True),
                count("n_settings", "settings on the curve", nullable=True, optional=True),
                *(replace(_SEEDS, nullable=True), REASON, replace(CONVERGED, optional=True)),
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "contrasts",
            "Two architectures matched on one axis: the difference of their scores over seeds.",
            (
                *(WIDTH, SPACE, SCORE, SIGNED, _MATCHED_ON, _AT),
                *(replace(ARCHITECTURE, name=f"architecture_{side}") for side in "ab"),
                number("difference", "score of architecture a minus that of b"),
                number("low", "lower end of the interval over seeds"),
                number("high", "upper end of the interval over seeds"),
                share("p", "t-test of the jackknife over seeds"),
                *(REASON, CONVERGED),
            ),
            intervals=(("difference", "low", "high"),),
        ),
        Table(
            "seeds_needed",
            "A group: seeds needed for an interval within ±0.05; or two groups that differ in one "
            "setting: seeds needed in each to show a difference with power 0.8. Estimated from the "
            "variances of seeds and pairs.",
            (
                GROUP,
                text("other", "the other group; missing in the row of one group", nullable=True),
                count("n_seeds", "number of seeds, present or planned"),
                number("pw_mcc", "mean PW-MCC of a pair of seeds"),
                number("seed_sd", "standard deviation of the seed effects", low=0),
                number("pair_sd", "standard deviation of the pair noise", low=0),
                number("half_width", "expected half width of the interval over n_seeds", low=0),
                number("difference", "mean PW-MCC of the group minus that of the other"),
                count("seeds", "seeds needed; missing where 200 are not enough", nullable=True),
                REASON,
            ),
        ),
        Table(
            "published",
            "A score, of this study or of a publication.",
            (
                text("source", "this study, or the publication"),
                text("model", "model whose activations the SAEs read"),
                *(ARCHITECTURE, replace(WIDTH, nullable=True), SETTINGS[0], L0),
                *(SCORE, replace(SIGNED, nullable=True)),
                number("value", "the score"),
                *(*INTERVAL[1:], *_LEVELS, CONVERGED),
                text("like_for_like", "whether the numbers may be compared"),
                text("differs_in", "how the publication differs; empty for this study"),
            ),
            intervals=(("value", "low", "high"),),
        ),
        Table(
            "orderings",
            "Two architectures that a publication ranks, and their order in this study.",
            (
                text("source", "the publication"),
                *(SCORE, WIDTH),
                text("paper_higher", "architecture that scores higher in the publication"),
                text("paper_lower", "architecture that scores lower in the publication"),
                REASON,
                text("basis", "what is matched, or own L0"),
                _AT,
                number("difference", "this study's first minus second", optional=True),
                flag(
                    "agrees",
                    "whether the order is that of the publication; missing in a tie",
                    optional=True,
                ),
                flag(
                    "separated",
                    "whether the interval of the difference excludes 0 (own L0: the two intervals "
                    "do not overlap)",
                    optional=True,
                ),
            ),
        ),
        Table(
            "correlates",
            "A group and a property of features: its rank correlation with reproducibility.",
            (
                *(GROUP, _SEEDS, CONVERGED, HOOK),
                text("covariate", "name of the property"),
                *(replace(column, low=-1.0, high=1.0) for column in _MEAN),
                REASON,
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "trajectories",
            "A group and a step of training: PW-MCC in the full space.",
            (
                *(replace(_OF_GROUP[0], nullable=True), *_OF_GROUP[1:]),
                count("step", "steps of training", optional=True),
                *(*_MEAN, *_LEVELS),
                share("cosine_to_init", "mean |cosine| to the initial rows", optional=True),
                *(REASON, HOOK),
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "geometry",
            "A group and a measure of the geometry or firing of its features.",
            (*_OF_GROUP, text("measure", "name of the measure"), *_MEAN, REASON, *_LEVELS, HOOK),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "symmetries",
            "A group, a kind of pair and a symmetry of the task.",
            (
                *_OF_GROUP,
                *(
                    text(name, meaning, optional=True)
                    for name, meaning in (
                        ("kind_of_pair", "an SAE with itself, or with another seed's"),
                        ("symmetry", "the symmetry"),
                        ("kind", "its kind"),
                    )
                ),
                flag("answer_kept", "whether the answer stays the same", optional=True),
                count("n", "SAEs, or pairs of seeds", optional=True),
                *(
                    number(name, meaning, low=-1.0, high=1.0, optional=True)
                    for name, meaning in (
                        ("score", "mean correlation of matched codes under the symmetry"),
                        *(("low", INTERVAL[1].meaning), ("high", INTERVAL[2].meaning)),
                        ("identity_score", "the same without the symmetry"),
                        ("null_mean", "the same under random relabellings of the inputs"),
                    )
                ),
                share(
                    "exact_fraction", "share of latents mapped to a latent exactly", optional=True
                ),
                number("retained", "(score - null) / (identity - null)", optional=True),
                share("p", "share of the null's draws that are as high", optional=True),
                REASON,
            ),
            intervals=(("score", "low", "high"),),
        ),
    )
}
"""The declared tables beside a report, by name."""
