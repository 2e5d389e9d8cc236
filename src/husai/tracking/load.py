"""The load of this machine, as metrics of a run."""

from __future__ import annotations

import logging
import threading

from husai.tracking.recorder import now
from husai.tracking.session import TrackedRun

logger = logging.getLogger(__name__)

SAMPLING_SECONDS = 5.0
"""How often this machine's load is measured."""


class MachineLoad:
    """Measures this machine's load in a thread, as MLflow names it, until it is stopped.

    MLflow's own thread ends for good when the server does not answer; here what was measured
    then waits with everything else.

    Parameters
    ----------
    run
        Where it is recorded.
    """

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # never started: it knows what there is to measure, and what a user wants of it
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
                return  # its run is not there any more
            step += 1
