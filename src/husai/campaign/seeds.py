"""How many seeds the settings of a plan need, estimated before they are trained."""

from __future__ import annotations

import pandas as pd

from husai.campaign.plan import plan_keys
from husai.consistency.study.planning import (
    HALF_WIDTH,
    POWER,
    own_components,
    piloted,
    seeds_needed,
)


def planned_seeds(plan: pd.DataFrame, pairs: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Make the table of how many seeds a plan's settings need.

    Parameters
    ----------
    plan
        The plan; only settings on the trained model are considered.
    pairs
        Pair scores of an earlier run of the study, from which the variances are estimated; if it is
        empty, or does not have a setting, those of the study over transformers are used.
    level
        Confidence level of the intervals.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`husai.consistency.study.planning.seeds_needed`, and
        ``variances_from``.
    """
    own = plan[plan["model"] == "trained"]
    counts = own.groupby("group", sort=False)["seed"].size()
    settings = own.drop_duplicates("group").assign(n_seeds=lambda t: t["group"].map(counts))
    # settings at different hooks are not compared: their features are in different spaces
    hooks = dict(zip(own["group"], plan_keys(own), strict=True))
    known = own_components(pairs)[0] if len(pairs) else {}
    of_pilot, sources = piloted(settings)
    components = {**of_pilot, **known}
    origin = {
        group: "this study" if group in known else f"pilot {sources[group]}"
        for group in counts.index
        if group in components
    }
    reasons = dict.fromkeys(counts.index, "neither an earlier run nor a pilot study has variances")
    table = seeds_needed(components, settings, level=level, reasons=reasons)
    # two settings that use the same setting of the pilot study cannot be compared
    apart = [
        pd.notna(other)
        and (
            hooks[group] != hooks[other]
            or (origin[group] == origin[other] and origin[group] != "this study")
        )
        for group, other in zip(table["group"], table["other"], strict=True)
    ]
    table = table[~pd.Series(apart, index=table.index)]
    return table.assign(variances_from=table["group"].map(origin)).reset_index(drop=True)


def seeds_text(table: pd.DataFrame) -> str:
    """Write the table of needed seeds as text."""
    single = table[table["other"].isna()]
    lines = [
        f"Seeds for an interval of PW-MCC within ±{HALF_WIDTH:g}",
        "",
        _shown(
            single.assign(
                half_width=[f"±{v:.3f}" if pd.notna(v) else "none" for v in single["half_width"]]
            ),
            ["group", "n_seeds", "half_width", "seeds", "variances_from"],
            {"n_seeds": "planned", "half_width": "expected", "seeds": "needed"},
        ),
    ]
    pairs = table[table["other"].notna()]
    if len(pairs):
        lines += [
            "",
            f"Seeds in each of two settings that show their difference with power {POWER:g}",
            "",
            _shown(
                pairs.assign(difference=[f"{v:+.3f}" for v in pairs["difference"]]),
                ["group", "other", "difference", "n_seeds", "seeds"],
                {"n_seeds": "planned", "seeds": "needed"},
            ),
        ]
    return "\n".join(lines)


def _shown(table: pd.DataFrame, columns: list[str], names: dict[str, str]) -> str:
    needed = [
        str(int(seeds)) if pd.notna(seeds) else "not known" if reason else "more than 200"
        for seeds, reason in zip(table["seeds"], table["reason"], strict=True)
    ]
    return table.assign(seeds=needed)[columns].rename(columns=names).to_string(index=False)
