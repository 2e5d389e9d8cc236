"""The table of results: two studies of the same name get two names and are not averaged."""

from __future__ import annotations

import torch

from husai.campaign import results
from husai.campaign.ledger import Ledger
from husai.sae import BankTrainingConfig, SAEConfig, to_tensors, train_bank
from husai.storage import write_tensors


def test_studies_of_one_name_in_two_folders_have_two_names(tmp_path):
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    training = BankTrainingConfig(steps=2, batch_size=10, eval_interval=1, device="cpu")
    (sae,) = train_bank(rows, [SAEConfig(architecture="topk", d_sae=6, k=2)], training)
    tensors, header = to_tensors(sae)
    for folder, name in (("a", "study"), ("b", "study"), ("c", "other")):
        header["provenance"] = {**header["provenance"], "campaign": {"name": name}}
        write_tensors(tmp_path / folder / "trained" / "s.safetensors", tensors, header)
        Ledger(tmp_path / folder / "campaign" / "ledger.jsonl").record("planned", ["s"])
    names = [f"study in {tmp_path / 'a'}", f"study in {tmp_path / 'b'}", "other"]
    assert results(tmp_path)["campaign"].tolist() == names
    assert results(tmp_path / "a")["campaign"].tolist() == ["study"]
