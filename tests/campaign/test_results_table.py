"""The table of results: every SAE once, whether trained, failed, missing or moved out."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tests.campaign.conftest import TRAINING, Campaign, make_config

from husai.campaign import ledger_totals, results
from husai.campaign.folders import RUNS
from husai.campaign.store import identity
from husai.errors import CampaignStopped, InputError
from husai.storage import read_header, read_tensors, write_tensors


def test_trained_and_missing_saes_of_several_campaigns_are_one_table(tmp_path):
    grid = Campaign(tmp_path / "saes")
    grid.start(make_config(name="grid"))
    other = Campaign(tmp_path / "campaign" / "saes")
    config = make_config(name="other")
    other.start(config, stop_after=4)
    other.plan(config).to_parquet(tmp_path / "campaign" / "saes" / "plan.parquet")
    content = read_header(grid.path("topk-d8-k2-s0-20aec7"))
    run = {"sae_id": "topk-d8-k2-s0-20aec7", "identity": identity(content), "run_id": "r"}
    path = grid.folders.campaign / RUNS
    path.write_text(json.dumps({**run, "tracking_uri": "u"}) + "\n{torn")
    table = results(tmp_path)
    assert len(table) == 24
    assert table.groupby("campaign").size().to_dict() == {"grid": 12, "other": 12}
    done = table[table["campaign"] == "grid"]
    assert (done["status"] == "done").all()
    for row in done.to_dict("records"):
        sae = grid.saes()[row["sae_id"]]
        assert row["metric.fvu"] == sae.metrics["fvu"]
        assert row["config.d_sae"] == sae.config.d_sae
        assert row["training.steps"] == TRAINING.steps
        assert row["path"] == str(grid.path(row["sae_id"]))
        assert row["version.husai"] == sae.provenance["husai"]
    assert done.set_index("sae_id").loc[run["sae_id"], "run_id"] == "r"
    missing = table[table["path"].isna()]
    assert len(missing) == 8
    assert set(missing["campaign"]) == {"other"}
    assert set(missing["status"]) <= {"planned", "running"}
    assert set(missing["seed"]) == {0, 1, 2}


def test_campaigns_are_found_in_any_folder_each_once(tmp_path):
    deep = tmp_path / "studies" / "mine" / "saes"
    Campaign(deep).start(make_config(name="deep"), stop_after=2)
    table = results(tmp_path, tmp_path / "studies", deep)
    assert table.groupby("campaign").size().to_dict() == {"deep": 12}


def test_plans_and_records_that_cannot_be_read_are_left_out(campaign, caplog):
    campaign.start()
    folder = campaign.folders.campaign
    sae_id = next(campaign.folders.store.iterdir()).stem
    run = {"sae_id": sae_id, "run_id": "r", "tracking_uri": "u"}
    run["identity"] = identity(read_header(campaign.path(sae_id)))
    (folder / RUNS).write_bytes(b"\xff\xfe\n[]\n" + json.dumps(run).encode() + b'\n{"a": 1}\n')
    (folder.parent / "plan.parquet").write_bytes(b"")
    table = results(folder.parent).set_index("sae_id")
    assert len(table) == 12
    assert table.loc[sae_id, "run_id"] == "r"
    assert "plan.parquet cannot be read" in caplog.text
    assert "runs.jsonl: line 1 cannot be read" in caplog.text


def test_quarantined_files_are_rows_of_their_own(campaign):
    # a name with a point in it, as the files' are in quarantine
    relu = {"architectures": {"relu": {"l1_coefficient": [1.5]}}, "d_sae": [8], "seeds": [0, 1]}
    config = make_config(plan={"hook_name": "h", **relu})
    campaign.start(config)
    campaign.start(config, training=TRAINING.model_copy(update={"steps": 50}))
    table = results(campaign.folders.campaign.parent)
    assert table["status"].value_counts().to_dict() == {"done": 2, "quarantined": 2}
    old = table[table["status"] == "quarantined"]
    assert set(old["sae_id"]) == set(campaign.saes())
    assert (old["training.steps"] == 40).all()
    assert old["path"].str.contains("quarantine").all()


def test_a_file_without_its_provenance_is_a_row_that_says_so(campaign):
    campaign.start()
    path = next(campaign.folders.store.iterdir())
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, {**header, "provenance": None})
    table = results(campaign.folders.campaign.parent).set_index("sae_id")
    assert len(table) == 12
    assert "AttributeError" in table.loc[path.stem, "reason"]


def test_failures_say_why(campaign, monkeypatch):
    import husai.sae

    def faulty(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(husai.sae, "train_bank", faulty)
    with pytest.raises(CampaignStopped):
        campaign.start()
    table = results(campaign.folders.campaign.parent)
    assert (table["status"] == "failed").all()
    assert (table["reason"] == "RuntimeError: out of luck").all()


def test_a_folder_without_a_campaign_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no campaign/"):
        results(tmp_path)


def test_time_between_sessions_is_not_counted():
    spans = [(0.0, 10.0), (5.0, 12.0), (6.0, 7.0), (1000.0, 1003.0), (None, None)]
    table = pd.DataFrame(
        [
            {"status": "done", "attempts": 1, "seconds": 1.0, "cost": 0.0}
            | {"started": start, "ended": end}
            for start, end in spans
        ]
    )
    assert ledger_totals(table)["elapsed"] == 15.0
    assert "elapsed" not in ledger_totals(table.iloc[-1:])
