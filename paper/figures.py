"""Draw the figures of the paper, the slides and the poster from committed results.

    python paper/figures.py                 # build/paper/figures/*.svg
    python paper/figures.py kinds gate      # some of them

Every number drawn is read from ``docs/results`` or ``benchmarks/results``. Text becomes outlines,
so that no font is needed where the documents are compiled. A figure whose results are not there is
left out, and the documents that would show it have a guard of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import figures_calibration as calibration
import figures_home as home
import matplotlib as mpl
from drawing import OUT
from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[], Figure]] = {
    "kinds": home.kinds,
    "maps": home.maps,
    "function": home.function,
    "reliability": home.reliability,
    "transformers": home.transformers,
    "gate": calibration.gate,
    "nulls": calibration.nulls,
    "planted": calibration.planted,
    "architectures": home.architectures,
}


def main() -> None:
    """Draw every figure, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("figures", nargs="*", choices=[[], *FIGURES], help="all by default")
    asked = parser.parse_args().figures or list(FIGURES)
    OUT.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update(
        {
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 7,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "svg.fonttype": "path",
            "svg.hashsalt": "husai",
        }
    )
    for name in asked:
        FIGURES[name]().savefig(OUT / f"{name}.svg", metadata={"Date": None}, dpi=300)


if __name__ == "__main__":
    main()
