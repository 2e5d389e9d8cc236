"""The node that puts reconstructions in the place of the transformer's activations."""

from __future__ import annotations

import pandas as pd

from husai.campaign.plan import records
from husai.errors import InputError
from husai.storage import TensorFile, TensorFiles

HELD_OUT = "test"


def recover(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    transformer: TensorFile,
    examples: pd.DataFrame,
) -> pd.DataFrame:
    """Tabulate the loss that each SAE recovers, on examples outside the training split.

    SAEs of the untrained model are left out: its loss is no better than chance.
    """
    import torch

    from husai.sae import load_trained, loss_recovered
    from husai.transformer import TrainedTransformer, spliced_loss

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    model = trained.build()
    held_out = examples[examples["split"] == HELD_OUT]
    if held_out.empty:
        raise InputError(
            f"examples: the split '{HELD_OUT}' is empty, but the loss is measured on it; set "
            "task.test_fraction above 0"
        )
    tokens = held_out.filter(regex=r"^token_\d+$").to_numpy(dtype="int64", copy=True)
    answers = held_out["answer"].to_numpy(dtype="int64", copy=True)
    plan = sae_plan[sae_plan["model"] == "trained"]
    rows = []
    places = plan[["hook_name", "position"]].drop_duplicates()
    for place in records(places):
        hook_name, position = str(place["hook_name"]), int(place["position"])
        at_hook = plan[(plan["hook_name"] == hook_name) & (plan["position"] == position)]
        loss_with = spliced_loss(
            model,
            torch.from_numpy(tokens),
            torch.from_numpy(answers),
            hook_name,
            position,
            answer_position=trained.vocabulary.answer_position,
        )
        bounds: tuple[float, float] | None = None
        for sae_id, sae in load_trained(saes, at_hook["sae_id"].tolist()).items():
            if sae.failure is not None:
                continue
            found = loss_recovered(sae, loss_with, bounds)
            bounds = found["loss_clean"], found["loss_zero"]
            measured = {name: sae.metrics[name] for name in ("l0", "fvu", "converged")}
            rows.append({"sae_id": sae_id, **found, **measured})
    columns = ["sae_id", "group", "architecture", "d_sae", "seed", "hook_name", "position"]
    return plan[columns].merge(pd.DataFrame(rows), on="sae_id", validate="one_to_one")
