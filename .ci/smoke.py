"""Test an installed HUSAI without the repository, from an empty folder.

    python -I smoke.py VERSION [lm]

It trains two tiny SAEs, uses them with every command, loads a shipped transformer, compares two
shipped SAEs on its activations, and checks the messages about optional parts that are not
installed. With `lm` it builds the shipped transformer with its hooks, which needs that extra.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from husai.transformer import TrainedTransformer

COMMAND = Path(sysconfig.get_path("scripts")) / "husai"
PROJECT_ALONE = ("kedro", "mlflow", "ray", "transformer_lens", "matplotlib")
PROJECT_ROOMS = ("settings", "pipelines", "datasets", "figures")
PACKAGES = ("campaign", "consistency", "features", "language", "sae", "tasks", "transformer")


def husai(*words: str, code: int = 0) -> str:
    """Run the command and give what it says."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"husai {' '.join(words)} ended with {done.returncode}: {said}"
    assert "Traceback" not in said, said
    return said


def check_package(expected: str) -> None:
    """One version everywhere, types and all names there, and nothing of the project."""
    import husai as package

    assert package.__version__ == version("husai") == expected
    assert husai("--version").split() == ["husai", expected]
    folder = Path(package.__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not what was installed"
    assert (folder / "py.typed").is_file()
    for name in PACKAGES:
        room = importlib.import_module(f"husai.{name}")
        for public in room.__all__:
            getattr(room, public)
    there = [name for name in PROJECT_ALONE if find_spec(name)]
    assert not there, f"the library brings {', '.join(there)}"


def check_commands() -> None:
    """Train, compare, inspect, convert, show features, make a consensus."""
    from husai.sae import BankTrainingConfig, SAEConfig, save_sae, train_bank

    rows = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    np.save("rows.npy", rows)
    settings = [SAEConfig(architecture="topk", d_sae=12, k=3, init_seed=seed) for seed in (0, 1)]
    for seed, sae in enumerate(
        train_bank(rows, settings, BankTrainingConfig(steps=50, batch_size=64))
    ):
        save_sae(sae, f"seed{seed}.safetensors")
    saes = ("seed0.safetensors", "seed1.safetensors")
    assert "PW-MCC" in husai("compare", *saes, "--activations", "rows.npy", "--json", "scores.json")
    result = json.loads(Path("scores.json").read_text())
    assert result["software"]["husai"] == version("husai")
    (score,) = (r["mean"] for r in result["overall"] if (r["score"], r["signed"]) == ("pw_mcc", 0))
    assert 0 < score < 1
    husai("compare", *saes, "--fail-under", "0.999", code=1)
    assert "12" in husai("inspect", saes[0])
    husai("convert", saes[0], "converted", "--to", "saelens")
    husai("compare", saes[0], "converted", "--fail-under", "0.999")
    husai("features", *saes, "--activations", "rows.npy", "--out", "page.html")
    assert "</html>" in Path("page.html").read_text()
    husai("consensus", *saes, "--activations", "rows.npy", "--out", "kept", "--threshold", "0.1")
    assert "no such" in husai("compare", saes[0], "nowhere", code=2)


def check_limits() -> None:
    """What needs more than the library says so in one line."""
    from husai.errors import InputError

    assert "no such folder" in husai("studies", code=2)
    asked: list[tuple[Callable[[], object], str]] = [(load_shipped().build, "lm")]
    asked += [
        (partial(importlib.import_module, f"husai.{room}"), "project") for room in PROJECT_ROOMS
    ]
    for call, extra in asked:
        said = f"nothing: husai[{extra}] is not needed for {call}"
        try:
            call()
        except InputError as error:
            said = str(error)
        assert f"pip install 'husai[{extra}]'" in said, said


def load_shipped() -> TrainedTransformer:
    """Load a shipped transformer, which is measured to do what the manifest says."""
    from husai.tasks import modular_dataset
    from husai.transformer import TransformerChoice, load_shipped, shipped_transformers

    first = shipped_transformers()[0]
    choice = TransformerChoice(seed=first.seed, shipped=first.shipped)
    return load_shipped(choice, modular_dataset(first.task))


def check_shipped() -> None:
    """Compare two shipped SAEs on the activations of the transformer that they read."""
    import torch

    from husai.sae import load_sae, shipped_saes
    from husai.transformer import answer_activations

    saes = shipped_saes()[-2:]
    model = load_shipped()
    identity = load_sae(saes[0]).provenance["study"]["transformer"]
    assert identity == model.identity(), f"{saes[0]} reads {identity}"
    numbers = torch.arange(model.vocabulary.modulus)
    a, b = torch.cartesian_prod(numbers, numbers).T
    found = answer_activations(model.state_dict, a, b, model.vocabulary, model.model_config)
    np.save("pairs.npy", found.resid_post.detach().numpy())
    options = ("--activations", "pairs.npy", "--null-draws", "0", "--fail-under", "0.7")
    said = husai("compare", *saes, *options)
    assert "PW-MCC" in said
    for room in ("sae", "transformer"):
        folder = Path(importlib.import_module(f"husai.{room}").__file__ or "").parent
        assert (folder / "shipped" / "README.md").is_file(), f"{room}: no card"


if __name__ == "__main__":
    if sys.argv[2:] == ["lm"]:
        load_shipped().build()
        print("a shipped transformer has its hooks")
    else:
        check_package(sys.argv[1])
        check_commands()
        check_shipped()
        check_limits()
        print("smoke test passed")
