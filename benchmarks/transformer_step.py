"""Time one training step of the transformer of Nanda et al., computed in three ways.

    python benchmarks/transformer_step.py --threads 2 --out benchmarks/results/transformer_step.json

Addition mod 113, half of the pairs, full batch, forward + backward + AdamW. The three ways
alternate in every round, so that other work of the machine slows all of them equally. Ratios
compare the times of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from husai.storage import atomic_path
from husai.tasks import ModularTaskConfig, modular_dataset
from husai.transformer import TransformerConfig, build_transformer
from husai.transformer.device import hardware_name
from husai.transformer.functional import functional_logits
from husai.transformer.kernel import compiled_loss, torch_threads
from husai.transformer.model import named_parameters
from husai.transformer.training import answer_loss


class LossForm:
    """A model of its own, stepped by one way of computing the loss."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads = torch.get_num_threads()
        dataset = modular_dataset(ModularTaskConfig())
        self.vocabulary, self.config = dataset.vocabulary, TransformerConfig()
        self.model = build_transformer(self.config, self.vocabulary.d_vocab, self.vocabulary.n_ctx)
        self.parameters = named_parameters(self.model)
        rows = dataset.rows("train")
        self.tokens = torch.tensor(dataset.tokens()[rows])
        self.answers = torch.tensor(dataset.answers()[rows])
        self.a, self.b = self.tokens[:, 0].contiguous(), self.tokens[:, 1].contiguous()
        trained = [p for p in self.parameters.values() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0, fused=True
        )
        forms: dict[str, Callable[[], Tensor]] = {
            "hooked": self.hooked,
            "functional": self.functional,
            "compiled": self.compiled,
        }
        self.loss = forms[name]

    def hooked(self) -> Tensor:
        return answer_loss(self.model(self.tokens)[:, -1], self.answers)

    def functional(self) -> Tensor:
        logits = functional_logits(self.parameters, self.a, self.b, self.vocabulary, self.config)
        return answer_loss(logits, self.answers)

    def compiled(self) -> Tensor:
        return compiled_loss(
            self.parameters,
            self.a,
            self.b,
            self.answers,
            self.vocabulary,
            self.config,
            self.threads,
        )

    def step(self) -> float:
        started = time.perf_counter()
        # as husai.transformer.training does it
        with torch_threads(1) if self.name == "compiled" else nullcontext():
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.loss())
            self.optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    forms = [LossForm(name) for name in ("hooked", "functional", "compiled")]
    for form in forms:
        form.step()
        form.step()
    load = os.getloadavg()[0]
    seconds = np.array([[form.step() for form in forms] for _ in range(arguments.rounds)])
    losses = [float(form.loss().detach()) for form in forms]
    # all forms took the same steps: equal losses show that they are the same function
    if not np.allclose(losses, losses[0], rtol=1e-3):
        raise SystemExit(f"the forms have come to different losses: {losses}")

    n_rows = len(forms[0].answers)
    report: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "setting": f"addition mod 113, {n_rows} train rows, full batch, AdamW",
        "hardware": hardware_name(torch.device("cpu")),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "load_average_before_and_after": [load, os.getloadavg()[0]],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "forms": {},
    }
    for i, form in enumerate(forms):
        times, ratios = seconds[:, i], seconds[:, 0] / seconds[:, i]
        report["forms"][form.name] = {
            "median_ms": float(np.median(times) * 1e3),
            "fastest_ms": float(times.min() * 1e3),
            "fastest_us_per_row": float(times.min() * 1e6 / n_rows),
            "times_faster_than_hooked_median": float(np.median(ratios)),
            "times_faster_than_hooked_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
            "loss_after_the_steps": losses[i],
        }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        with atomic_path(arguments.out) as path:
            path.write_text(text + "\n")


if __name__ == "__main__":
    main()
