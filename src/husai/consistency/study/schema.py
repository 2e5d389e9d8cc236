"""Declarations of the tables of a report: their columns, types, units, ranges and meanings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import of_pairs
from husai.consistency.study.columns import Column, Table, count, flag, number, share, text

HOOK = text("hook", "id of the activations, HOOK_NAME@POSITION", optional=True)
GROUP = text("group", "SAEs that differ in their seed only")
ID = text("id", "id of the SAE")
CONVERGED = flag("converged", "whether every SAE passed the convergence gate", nullable=True)
REASON = text("reason", "why something is missing; empty otherwise", nullable=True)
SPACE = text("space", "all dimensions, or the data's principal subspace", values=("full", "data"))
SCORE = text(
    "score", "name in the registry of scores", values=tuple(score.name for score in of_pairs())
)
SIGNED = flag("signed", "true: the cosine itself is used; false: its absolute value")
ARCHITECTURE = text("architecture", "kind of SAE")
WIDTH = count("d_sae", "latents of an SAE", low=1)
SETTINGS = (
    number("k", "latents that may fire on a row", low=0),
    number("l1_coefficient", "weight of the L1 penalty", low=0),
)
L0 = number("l0", "mean number of latents that fire on a row", low=0)
LIVE = count("n_live", "latents that take part, mean over SAEs")
EVERYWHERE = number("n_everywhere", "latents found in every other seed, mean over SAEs", low=0)
FVU = number("fvu", "fraction of variance unexplained, mean over SAEs", low=0)
HEAD = (
    GROUP,
    ARCHITECTURE,
    WIDTH,
    *SETTINGS,
    L0,
    SPACE,
    count("dimensions", "dimensions of the space", low=1),
    LIVE,
    FVU,
    count("n_seeds", "SAEs of the group", low=1),
    CONVERGED,
    count("n_converged", "SAEs that passed the convergence gate"),
)
INTERVAL = (
    number("mean", "mean, over pairs of SAEs or over SAEs"),
    number("low", "lower end of the interval over seeds"),
    number("high", "upper end of the interval over seeds"),
)


def _null_columns() -> Iterator[Column]:
    parts = (
        ("mean", "mean of the null", None, None),
        ("sd", "standard deviation of the null", 0.0, None),
        ("corrected", "(score - null) / (perfect - null)", None, 1.0),
        ("p", "one-sided p-value of the score", 0.0, 1.0),
        ("z", "(score - null) over the null's standard deviation", None, None),
        ("p_adjusted", "p over the groups of one score and space (Benjamini-Hochberg)", 0.0, 1.0),
    )
    for kind in NULL_KINDS.values():
        for part, meaning, low, high in parts:
            yield number(
                f"{kind.name}_{part}",
                f"null {kind.name} ({kind.title}): {meaning}",
                low=low,
                high=high,
                optional=True,
            )


_PLANE_MEASURES = ("recall", "covered", "mean_purity", "in_plane", "mean_rho", "mean_energy")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "saes",
            "An SAE.",
            (
                *(GROUP, ID, ARCHITECTURE, WIDTH, *SETTINGS),
                count("seed", "the seed that was varied"),
                count("n_live", "latents that take part"),
                count("n_dead", "latents that never fire", nullable=True),
                L0,
                number("fvu", "fraction of variance unexplained", low=0),
                CONVERGED,
                number("motion", "1 - |cosine| of decoder rows per 500 steps, before the decay"),
                number("plateau", "change of the group's PW-MCC over the half before the decay"),
                share("cosine_to_init", "mean |cosine| of decoder rows to their initial rows"),
                share("share_in_data_span", "squared norm of decoder rows inside the data's span"),
                *(
                    share(f"plane_{name}", f"plane recovery: {name}", optional=True)
                    for name in (*_PLANE_MEASURES, "gt_mcc")
                ),
                *(
                    share(f"gt_mcc_phase_{end}", f"GT-MCC over phases: {end}", optional=True)
                    for end in ("mean", "min", "max", "chance")
                ),
                HOOK,
            ),
        ),
        Table(
            "pairs",
            "A pair of SAEs, a space, a score and a sign.",
            (
                GROUP,
                flag("within", "whether both SAEs are of one group"),
                *(text(f"id_{side}", f"id of SAE {side}") for side in "ab"),
                *(count(f"seed_{side}", f"seed of SAE {side}") for side in "ab"),
                SPACE,
                *(count(f"n_{side}", f"latents of SAE {side} that take part") for side in "ab"),
                CONVERGED,
                *(SCORE, SIGNED),
                number("value", "the score"),
                number("chance", "its chance level in closed form"),
                REASON,
                HOOK,
            ),
        ),
        Table(
            "groups",
            "A group, a space, a score and a sign, with interval and nulls.",
            (
                *HEAD,
                EVERYWHERE,
                *(SCORE, SIGNED, *INTERVAL),
                number("se", "standard error over seeds", low=0, optional=True),
                count("n_pairs", "pairs of SAEs", nullable=True, optional=True),
                text("interval", "how the interval was made", nullable=True, optional=True),
                text(
                    "encoder_metric",
                    "metric in which encoder rows are compared; empty if they are not used",
                    nullable=True,
                    values=("data", "raw"),
                ),
                text(
                    "against_permuted",
                    "whether the mean is above or below the permuted null, by both its interval "
                    "over seeds and its p-value",
                    nullable=True,
                    optional=True,
                    values=("above", "below", "unclear"),
                ),
                REASON,
                *_null_columns(),
                HOOK,
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "comparisons",
            "A pair of groups, a space, a score and a sign: their difference over seeds.",
            (
                *(replace(GROUP, name=f"group_{side}") for side in "ab"),
                *(SPACE, SCORE, SIGNED),
                number("difference", "mean of group a minus mean of group b"),
                number("low", "lower end of the interval over seeds"),
                number("high", "upper end of the interval over seeds"),
                number("se", "standard error over seeds", low=0),
                number("effect", "Hedges' g on the seeds' pseudo-values"),
                share("p", "t-test over seeds"),
                share("permutation_p", "p of a test that permutes the groups of the SAEs"),
                share("least_p", "smallest p that permutations of these sizes can give"),
                REASON,
                *(replace(L0, name=f"l0_{side}") for side in "ab"),
                flag("matched_l0", "whether the two L0 differ by at most a tenth", nullable=True),
                CONVERGED,
                share("p_adjusted", "Holm over the table's rows of one space, score and sign"),
                HOOK,
            ),
            intervals=(("difference", "low", "high"),),
        ),
        Table(
            "seeds",
            "A group and a space: many seeds together.",
            (
                *HEAD,
                text("path", "seeds in the order of the best path", nullable=True, optional=True),
                number("path_mean", "mean PW-MCC along the path", optional=True),
                text("path_method", "how the path was found", nullable=True, optional=True),
                number("path_gap", "gain of the best path over the greedy one", optional=True),
                number("pair_mean", "mean PW-MCC of all pairs", optional=True),
                number("selected_mean", "mean of best paths of shuffled scores", optional=True),
                number("selected_sd", "their standard deviation", low=0, optional=True),
                share("path_p", "share of shuffled scores with a path as good", optional=True),
                text("tree", "edges of the spanning tree", nullable=True, optional=True),
                number("tree_mean", "mean PW-MCC of its edges", optional=True),
                REASON,
                share(
                    "cycle_fraction",
                    "share of features that three matches lead back to themselves",
                    optional=True,
                ),
                share(
                    "cycle_complete",
                    "share of features with a partner at every step",
                    optional=True,
                ),
                share("cycle_chance", "cycle fraction of random maps", optional=True),
                share("cycle_isotropic", "cycle fraction of random directions", optional=True),
                HOOK,
            ),
        ),
        Table(
            "retention",
            "A group, a space and a number of hops.",
            (
                *(GROUP, ARCHITECTURE, WIDTH, SETTINGS[0], SPACE, CONVERGED),
                count("hops", "number of matches followed in a row", low=1),
                share("retention", "share of features that reach their direct partner"),
                share("complete", "share of features with a partner at every hop"),
                count("n_paths", "number of paths in the mean", low=1),
                HOOK,
            ),
        ),
        Table(
            "features",
            "A latent of an SAE in one space.",
            (
                *(GROUP, ID),
                count("latent", "row of the decoder, from 0"),
                SPACE,
                count("track", "its track in the alignment; -1 for none", low=-1, optional=True),
                count("n_other_seeds", "number of other SAEs in the group"),
                count(
                    "n_seeds_found",
                    "number of these with a partner at the threshold or above",
                    optional=True,
                ),
                share("reproducibility", "mean similarity to its partners", optional=True),
                share("similarity_min", "least similarity to a partner", optional=True),
                share("similarity_max", "greatest similarity to a partner", optional=True),
                share("track_similarity", "mean similarity along its track", optional=True),
                share("firing_rate", "share of rows on which it fires", optional=True),
                share("cosine_to_init", "|cosine| to its own initial row", optional=True),
                number(
                    "cosine_to_encoder",
                    "cosine to its own encoder row",
                    low=-1.0,
                    high=1.0,
                    optional=True,
                ),
                CONVERGED,
                count("plane", "true plane that it is nearest to", low=-1, optional=True),
                share("rho", "norm of its part in that plane", optional=True),
                share("purity", "rho² divided by energy", optional=True),
                share("energy", "squared norm in all true planes", optional=True),
                number("angle", "direction within the plane", unit="radians", optional=True),
                flag("in_plane", "whether rho reaches the threshold", optional=True),
                text("kind", "kind of its label; other or dead without one", optional=True),
                text("family", "family of labels that explains it best", optional=True),
                text("label", "the label that explains it best", optional=True),
                share("r2", "share of its code's variance that the label explains", optional=True),
                share(
                    "average_precision",
                    "average precision as a detector of that class",
                    optional=True,
                ),
                share("f1_fires", "F1 of firing as a detector of that class", optional=True),
                share("f1_best", "F1 at the best threshold on its code", optional=True),
                number(
                    "family_r2",
                    "share of its code's variance that all classes of the family explain",
                    low=0.0,
                    high=1.0,
                    optional=True,
                ),
                HOOK,
            ),
        ),
        Table(
            "strata",
            "Features of one group and space with similar firing rates.",
            (
                *(GROUP, SPACE),
                share("rate_low", "least firing rate"),
                number("rate_high", "greatest firing rate", low=0),
                count("n_features", "features", low=1),
                share("firing_rate", "geometric mean of their firing rates"),
                share("reproducibility", "mean reproducibility"),
                share("found_fraction", "mean share of other seeds in which they are found"),
                share("orphan_fraction", "share of features found in no other seed"),
                CONVERGED,
                HOOK,
            ),
        ),
        Table(
            "planes",
            "An SAE and a true plane.",
            (
                *(GROUP, ID),
                count("plane", "number of the plane"),
                share("best_rho", "largest norm of a feature's part in the plane"),
                flag("recovered", "whether some feature reaches the threshold"),
                count("n_features", "features in the plane"),
                share("resultant", "length of their mean direction"),
                share("axial_resultant", "length of their mean axis"),
                number("largest_gap", "largest angle without a feature", unit="radians"),
                number("even_gap", "largest gap if they were evenly spread", unit="radians"),
                share("rayleigh_p", "Rayleigh's test of even directions"),
                flag("covered", "whether every half circle has a feature"),
                CONVERGED,
                HOOK,
            ),
        ),
        Table(
            "truth",
            "A group and a measure of plane recovery, with interval and nulls.",
            (
                *HEAD,
                text("measure", "name of the measure"),
                *(replace(column, low=0.0, high=1.0, optional=True) for column in INTERVAL),
                replace(REASON, optional=True),
                *(
                    number(f"{kind}_{part}", f"null {kind}: {part}", optional=True)
                    for kind in ("isotropic", "data_aware")
                    for part in ("mean", "sd", "p")
                ),
                HOOK,
            ),
            intervals=(("mean", "low", "high"),),
        ),
        Table(
            "coverage",
            "A group and a family of classes: how many classes have a latent of their own.",
            (
                *HEAD,
                text("family", "variable that the classes are values of: answer, a, b, token"),
                count("n_classes", "number of classes of the family", low=2),
                *(
                    replace(column, low=0.0, meaning=f"classes with a latent: {column.meaning}")
                    for column in INTERVAL
                ),
                REASON,
                number("by_firing", "classes with a latent by F1 of firing", low=0),
                number("by_average_precision", "classes with a latent by precision", low=0),
                number("by_r2", "classes that explain a latent by R²", low=0),
                number("chance", "classes covered by permuted features", low=0, optional=True),
                *(
                    number(name, meaning, low=-1.0, high=1.0, optional=True)
                    for name, meaning in (
                        ("gt_mcc", "GT-MCC (signed) to the centred class means, mean over SAEs"),
                        ("gt_mcc_low", "lower end of its interval over seeds"),
                        ("gt_mcc_high", "upper end of its interval over seeds"),
                    )
                ),
                *(
                    number(f"permuted_{part}", f"null permuted of gt_mcc: {part}", optional=True)
                    for part in ("mean", "sd", "corrected", "p", "z")
                ),
                HOOK,
            ),
            intervals=(("mean", "low", "high"), ("gt_mcc", "gt_mcc_low", "gt_mcc_high")),
        ),
        Table(
            "covered",
            "An SAE and a family of classes: how many classes have a latent of their own.",
            (
                *(GROUP, ID),
                count("seed", "the seed that was varied"),
                text("family", "variable that the classes are values of: answer, a, b, token"),
                count("n_classes", "number of classes of the family", low=2),
                count("covered", "classes with a latent, by F1 at the best threshold"),
                count("by_firing", "classes with a latent by F1 of firing"),
                count("by_average_precision", "classes with a latent by precision"),
                count("by_r2", "classes that explain a latent by R²"),
                HOOK,
            ),
        ),
        Table(
            "kinds",
            "A group and a kind of feature: how reproducible the features of that kind are.",
            (
                *(GROUP, ARCHITECTURE, WIDTH, SETTINGS[0], L0, SPACE),
                count("n_seeds", "SAEs of the group", low=1),
                CONVERGED,
                text("kind", "kind of the features' labels; other or dead without one"),
                number("n_features", "features of this kind, mean over SAEs", low=0),
                share("share", "share of this kind among the features that take part"),
                share("share_low", "lower end of its interval over seeds", optional=True),
                share("share_high", "upper end of its interval over seeds", optional=True),
                share("reproducibility", "mean over the features of this kind"),
                share("low", "lower end of its interval over seeds", optional=True),
                share("high", "upper end of its interval over seeds", optional=True),
                number("sd", "standard deviation over features", low=0),
                *(share(f"q{q}", f"{q} % of the features lie below") for q in (10, 90)),
                share("median", "half of the features lie below"),
                share("found_everywhere", "share that is found in every other seed"),
                share("orphan_fraction", "share that is found in no other seed"),
                share(
                    "share_of_everywhere",
                    "share of this kind among all features found in every other seed",
                ),
                share("null_mean", "mean over features of permuted groups", optional=True),
                share("null_q05", "5 % of permuted features lie below", optional=True),
                share("null_q95", "95 % of permuted features lie below", optional=True),
                share("above_null", "share above null_q95", optional=True),
                HOOK,
            ),
            intervals=(("share", "share_low", "share_high"), ("reproducibility", "low", "high")),
        ),
    )
}
"""The declared tables of a report, by name."""
