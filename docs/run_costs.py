"""Write the time and memory that the runs of studies needed, from their tracking databases.

    python docs/run_costs.py docs/results/costs.csv DATA/mlflow.db [...]

A row for each command that finished from a clean copy: seconds, SAEs, seconds of training summed
over workers, the machine, the commit, and the most memory that all programs of the machine used
meanwhile (an upper limit to what the run needs). Rows of other databases stay as they are.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pandas as pd

COLUMNS = {
    "command": "mlflow.source.name",
    "study": "husai.study",
    "machine": "machine",
    "commit": "mlflow.source.git.commit",
}
RUNS = """
    select run_uuid, (end_time - start_time) / 1000.0 as seconds from runs
    where status = 'FINISHED'
    and run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')
    order by start_time
"""
METRICS = "select key, value from latest_metrics where run_uuid = ?"
MEMORY = """
    select max(value) from metrics
    where run_uuid = ? and key = 'system/system_memory_usage_megabytes'
"""


def costs(database: Path) -> pd.DataFrame:
    """What each command of a study took, the last time it finished from a clean copy."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = []
        for run, seconds in connection.execute(RUNS).fetchall():
            tags = dict(connection.execute("select key, value from tags where run_uuid = ?", [run]))
            if tags.get("git.dirty") != "false":
                continue
            metrics = dict(connection.execute(METRICS, [run]))
            (memory,) = connection.execute(MEMORY, [run]).fetchone()
            rows.append(
                {
                    **{name: tags.get(tag) for name, tag in COLUMNS.items()},
                    "seconds": round(seconds, 1),
                    "saes": metrics.get("campaign.saes"),
                    "training_seconds": metrics.get("campaign.device_seconds"),
                    "machine_memory_mb": memory,
                }
            )
    found = pd.DataFrame(rows).round(1).drop_duplicates(["command", "study"], keep="last")
    found["commit"] = found["commit"].str[:12]
    return found


def main(target: Path, databases: list[Path]) -> None:
    """Write the table."""
    tables = [costs(database) for database in databases]
    if target.is_file():
        tables.insert(0, pd.read_csv(target))
    joined = pd.concat(tables, ignore_index=True)
    joined.drop_duplicates(["command", "study"], keep="last").to_csv(target, index=False)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
