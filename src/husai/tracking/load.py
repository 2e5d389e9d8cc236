"""The load of this machine, as metrics of a run."""

from __future__ import annotations

import logging
import threading

from husai.tracking.recorder import now
from husai.tracking.session import TrackedRun

logger = logging.getLogger(__name__)

SAMPLING_SECONDS = 5.0
"""Seconds between two measurements of this machine's load."""


class MachineLoad:
    """Measures this machine's load in a thread until it is stopped, under MLflow's names.

    MLflow's own thread ends when the server does not answer; here the measurements are kept until
    the server is back, like all other records.

    Parameters
    ----------
    run
        The run that they are recorded for.
    """

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # never started: used only for its sensors, and for the user's settings of them
        self._sensors = SystemMetricsMonitor(
            run.id, sampling_interval=SAMPLING_SECONDS, tracking_uri=run.recorder.uri
        )
        self._run = run
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True, name="husai load")
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        step = 0
        while not self._ended.is_set():
            try:
                self._sensors.collect_metrics()
                self._ended.wait(self._sensors.sampling_interval)
                measured = self._sensors.aggregate_metrics()
                for sensor in self._sensors.monitors:
                    sensor.clear_metrics()
            except Exception as error:
                logger.warning("the load of this machine is not measured: %s", error)
                return
            points = [(f"system/{name}", float(value), step) for name, value in measured.items()]
            if not self._run.do("metrics", points=points, at=now()):
                return  # the run does not exist any more
            step += 1
