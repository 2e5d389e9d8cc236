"""The pipeline that measures the structure of single dictionaries."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.structure_analysis.nodes import (
    find_symmetries,
    gather,
    measure_geometry,
    plot_examples,
    plot_symmetries,
    write_page,
)


def create_pipeline() -> Pipeline:
    """SAEs in; tables of geometry and symmetries, their figures, and a page out.

    It is not part of the default study: it takes minutes, and the main finding does not need it.
    """
    return Pipeline(
        [
            Node(
                gather,
                inputs=["sae_plan", "saes", "external_saes", "activations"],
                outputs="structure_records",
                name="gather_records",
            ),
            Node(
                measure_geometry,
                inputs=["structure_records", "params:consistency"],
                outputs="consistency_geometry",
                name="measure_geometry",
            ),
            Node(
                find_symmetries,
                inputs=["structure_records", "params:consistency"],
                outputs="consistency_symmetries",
                name="find_symmetries",
            ),
            Node(
                plot_symmetries,
                inputs="consistency_symmetries",
                outputs="symmetries_figure",
                name="plot_symmetries",
            ),
            Node(
                plot_examples,
                inputs="structure_records",
                outputs=["geometry_figure", "firing_figure", "circles_figure"],
                name="plot_examples",
            ),
            Node(
                write_page,
                inputs=[
                    "consistency_geometry",
                    "consistency_symmetries",
                    "run_origin",
                    "params:reporting",
                ],
                outputs="structure_page",
                name="write_page",
            ),
        ],
        namespace="structure_analysis",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="structure",
    )
