r"""Measure what is bit-equal on this machine, and how much its numbers differ from another's.

    python benchmarks/reproducibility.py NAME [--against FILE]

trains a tiny study (planted rows, four architectures, two engines) on one thread, again on two
threads, one by one instead of in a bank, and interrupted and resumed, and compares bits. It needs
NumPy, SciPy, numba and torch, and neither Kedro nor MLflow; it takes about a minute on one core,
and half a minute more the first time, while numba compiles.

It writes NAME.json (fingerprints and differences), NAME.safetensors (the weights) and NAME/ (three
SAEs as files) in benchmarks/results/reproducibility, and the page beside that folder from all
machines' files. FILE is the .safetensors of another machine: how far the weights are from it, by
step of training; and how far the scores that both give to that machine's three files are apart.

SAEs of a machine from which no more came back than NAME/ are compared by

    python benchmarks/reproducibility.py NAME --against FILE --trained --machine "processor, ..."

The instructions of an older processor, on the same machine:

    ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Nehalem NUMBA_CPU_NAME=nehalem \
        NUMBA_CPU_FEATURES= python benchmarks/reproducibility.py older_instructions --against ...
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.optimize import linear_sum_assignment

import husai
from husai.compare.comparison import CompareConfig, compare
from husai.compare.document import result_document
from husai.compare.files import load_saes
from husai.consistency import pw_mcc
from husai.provenance import versions
from husai.sae import BankTrainingConfig, SAEConfig, save_sae, train_bank
from husai.sae.trained import TrainedSAE, read_sae
from husai.tasks import PlantedConfig, planted_dictionary

RESULTS = Path(__file__).parent / "results" / "reproducibility"
WORLD = {"n_features": 48, "d_in": 24, "firing": {"kind": "uniform_k", "k": 3}}
ARCHITECTURES: Mapping[str, dict[str, float]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"l1_coefficient": 1.0},
    "jumprelu": {"l0_coefficient": 0.1},
}
STEPS = {"sparse": 1000, "dense": 150}
SEEDS = (0, 1, 2)
SNAPSHOT = 50
KEPT = (50, 250)
"""Steps whose decoders are compared, beside those of the start and the end."""
SCORED = "topk, sparse"
"""The SAEs that are kept as files, for another machine to score."""
ROOMS = ("tasks", "sae", "matching", "consistency", "compare")
"""What makes the numbers here."""
Weights = dict[str, np.ndarray]


def training(engine: str, threads: int = 1, **options: Any) -> BankTrainingConfig:
    """How every SAE here is trained."""
    return BankTrainingConfig(
        **{"steps": STEPS[engine], "batch_size": 128, "eval_interval": STEPS[engine]} | options,
        engine=engine,
        threads=threads,
        snapshot_interval=SNAPSHOT,
        device="cpu",
    )


def settings(architecture: str) -> list[SAEConfig]:
    """The SAEs of an architecture: one for each seed."""
    options = {"architecture": architecture, "d_sae": 48, **ARCHITECTURES[architecture]}
    return [SAEConfig.model_validate({**options, "init_seed": seed}) for seed in SEEDS]


def digest(*arrays: np.ndarray) -> str:
    """Fingerprint of the bits of arrays."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def tensors(saes: list[TrainedSAE]) -> list[np.ndarray]:
    """All weights of some SAEs."""
    return [
        getattr(sae, name).numpy() for sae in saes for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    ]


def elementary(rows: np.ndarray) -> dict[str, str]:
    """Fingerprints of single operations: which of them two machines do differently."""
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    made = torch.randn(256, generator=torch.Generator().manual_seed(0)).numpy()
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(0)).numpy()
    operations: dict[str, Callable[[], np.ndarray]] = {
        "random numbers of NumPy": lambda: a,
        "normal numbers of torch": lambda: made,
        "order of rows, torch": lambda: order,
        "planted rows": lambda: rows,
        "sum of float32, NumPy": lambda: a.sum(axis=0),
        "sum of float32, torch": lambda: x.sum(0).numpy(),
        "product of matrices, NumPy float32": lambda: a @ b,
        "product of matrices, NumPy float64": lambda: a.astype(np.float64) @ b.astype(np.float64),
        "product of matrices, torch float32": lambda: (x @ y).numpy(),
        "exp, NumPy": lambda: np.exp(a),
        "exp, torch": lambda: x.exp().numpy(),
        "sqrt, torch": lambda: x.abs().sqrt().numpy(),
        "singular values, NumPy": lambda: np.linalg.svd(a, compute_uv=False),
        "assignment, SciPy": lambda: linear_sum_assignment(a)[1],
    }
    return {name: digest(operation()) for name, operation in operations.items()}


def one_by_one(
    rows: np.ndarray, asked: list[SAEConfig], how: BankTrainingConfig
) -> list[TrainedSAE]:
    """Train each SAE in a bank of its own."""
    return [train_bank(rows, [one], how)[0] for one in asked]


def resumed(rows: np.ndarray, architecture: str) -> list[TrainedSAE]:
    """Train with checkpoints, lose all but the first, and continue from there."""
    configuration = training(
        "sparse", checkpoint_interval=STEPS["sparse"] // 4, keep_checkpoints=1000
    )
    with tempfile.TemporaryDirectory() as folder:
        train_bank(rows, settings(architecture), configuration, checkpoint_dir=folder)
        first, *later = sorted(Path(folder).glob("*.safetensors"))
        if not later:
            raise RuntimeError(f"one checkpoint alone, {first.name}: nothing would be resumed")
        for path in later:
            path.unlink()
        return train_bank(rows, settings(architecture), configuration, checkpoint_dir=folder)


def scores(saes: list[TrainedSAE]) -> dict[str, float]:
    """What a study would report: the mean score over pairs, and the mean FVU."""
    decoders = [sae.W_dec.numpy() for sae in saes]
    pairs = [(i, j) for j in range(len(decoders)) for i in range(j)]
    return {
        "pw_mcc": float(np.mean([pw_mcc(decoders[i], decoders[j]) for i, j in pairs])),
        "fvu": float(np.mean([sae.metrics["fvu"] for sae in saes])),
    }


def kept(saes: list[TrainedSAE]) -> Weights:
    """The decoders of the start, of some steps and of the end, one array for each."""
    steps = [step for step in sorted(saes[0].snapshots) if step in KEPT]
    found = {str(step): np.stack([sae.snapshots[step].numpy() for sae in saes]) for step in steps}
    start = np.stack([sae.W_dec_init.numpy() for sae in saes])
    return {"start": start} | found | {"end": np.stack([sae.W_dec.numpy() for sae in saes])}


def apart(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How far decoders ``[seeds, n, d]`` are from those of the same seeds elsewhere."""
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosine = (ours * theirs).sum(axis=-1) / np.maximum(norms, 1e-30)
    between = [pw_mcc(a, b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "largest_difference": float(np.abs(ours - theirs).max()),
        "least_cosine_of_a_feature": float(cosine.min()),
        "share_of_features_below_0.99": float((cosine < 0.99).mean()),
        "pw_mcc_of_one_seed_with_itself": float(np.mean(between)),
    }


def numbers_in(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a document, by the path to it."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {path: float(value)}
    inside = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {
        name: number
        for key, one in inside
        for name, number in numbers_in(one, f"{path}/{key}").items()
    }


def scores_of_files(folder: Path, rows: np.ndarray) -> dict[str, float]:
    """What ``husai compare --activations`` writes of three given SAEs: every number of it."""
    records = load_saes(sorted(folder.glob("*.safetensors")))
    found = compare(records, CompareConfig(), activations=rows.astype(np.float32))
    document = result_document(found).model_dump(mode="json", by_alias=True)
    return numbers_in({part: document[part] for part in ("pairs", "overall")})


def scores_apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """How far two machines' numbers of the same files are apart, relative to their size."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"other numbers than there: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    differ = {
        name: abs(one - theirs[name]) / max(abs(one), abs(theirs[name]))
        for name, one in ours.items()
        if one != theirs[name]
    }
    partners = [name for name in ours if "_index/" in name]
    worst = max(differ, key=differ.__getitem__, default=None)
    return {
        "numbers": len(ours) - len(partners),
        "same_bits": len(ours) - len(partners) - len([n for n in differ if n not in partners]),
        "partners_that_differ": len([name for name in partners if name in differ]),
        "largest_relative_difference": 0.0 if worst is None else differ[worst],
        "of": worst,
    }


def code_of(source: str) -> str:
    """The lines of a module that are neither docstring nor comment."""
    texts = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    left_out = {line for node in texts for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = enumerate(source.splitlines(), start=1)
    kept = [line for number, line in lines if number not in left_out]
    return "\n".join(line for line in kept if line.strip() and not line.strip().startswith("#"))


def source_fingerprint() -> str:
    """Fingerprint of the code that makes the numbers, without its comments and docstrings."""
    state = hashlib.sha256()
    folder = Path(husai.__file__).parent
    for path in sorted(path for room in ROOMS for path in (folder / room).rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        state.update((name + code_of(path.read_text(encoding="utf-8"))).encode())
    return state.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """What decides rounding: processor, instructions, libraries, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    return {
        "processor": names.get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "vector_instructions": [
            name for name in ("avx2", "fma", "avx512f") if name in names.get("flags", "").split()
        ],
        "source": source_fingerprint(),
        "numba": numba.__version__,
        **versions(),
    }


def study(rows: np.ndarray, theirs: Weights | None, files: Path) -> tuple[dict[str, Any], Weights]:
    """Train every architecture in every way; what came out, and the weights. Keep some as files."""
    found: dict[str, Any] = {}
    weights: Weights = {}
    began = time.perf_counter()
    for architecture in ARCHITECTURES:
        for engine in STEPS:
            whole = train_bank(rows, settings(architecture), training(engine))
            bits = digest(*tensors(whole))
            asked = settings(architecture)
            ways: dict[str, Callable[[], list[TrainedSAE]]] = {
                "two threads": partial(train_bank, rows, asked, training(engine, threads=2)),
                "one by one": partial(one_by_one, rows, asked, training(engine)),
            }
            if engine == "sparse":
                ways["resumed"] = partial(resumed, rows, architecture)
            entry: dict[str, Any] = {
                "steps": STEPS[engine],
                "fingerprint": bits,
                **scores(whole),
                "same_bits": {name: digest(*tensors(way())) == bits for name, way in ways.items()},
            }
            own = kept(whole)
            name = f"{architecture}, {engine}"
            if name == SCORED:
                for seed, sae in zip(SEEDS, whole, strict=True):
                    save_sae(replace(sae, snapshots={}), files / f"seed{seed}.safetensors")
            weights |= {f"{name}, {step}": value for step, value in own.items()}
            if theirs is not None:
                entry["from_the_other_machine"] = {
                    step: apart(value, theirs[f"{name}, {step}"]) for step, value in own.items()
                }
            found[name] = entry
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return found, weights


def trained_elsewhere(files: Path, against: Path, about: str) -> dict[str, Any]:
    """Compare three SAEs that another machine trained with those of ``against``: all there is."""
    saes = [read_sae(files / f"seed{seed}.safetensors") for seed in SEEDS]
    theirs = load_file(against)
    mine = {
        "start": np.stack([sae.W_dec_init.numpy() for sae in saes]),
        "end": np.stack([sae.W_dec.numpy() for sae in saes]),
    }
    other = [read_sae(against.with_suffix("") / f"seed{seed}.safetensors") for seed in SEEDS]
    same_rows = [
        sae.provenance["rows"]["fingerprint"] == one.provenance["rows"]["fingerprint"]
        for sae, one in zip(saes, other, strict=True)
    ]
    apart_by = {step: apart(value, theirs[f"{SCORED}, {step}"]) for step, value in mine.items()}
    one = {
        **scores(saes),
        "all_weights_have_the_same_bits": digest(*tensors(saes)) == digest(*tensors(other)),
        "from_the_other_machine": apart_by,
    }
    return {
        "machine": {"as_reported": about, "torch": saes[0].provenance["torch"]},
        "against": against.stem,
        "rows_have_the_same_bits": all(same_rows),
        "trained": {SCORED: one},
    }


def trained_lines(name: str, found: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What the page says of a machine from which three SAEs alone came back."""
    said = "had the same bits" if found["rows_have_the_same_bits"] else "differed"
    same = all(one["all_weights_have_the_same_bits"] for one in found["trained"].values())
    lines = [
        "",
        f"### {name} against {found['against']}",
        "",
        f"{found['machine']['as_reported']}. Three SAEs were trained there, and nothing else came "
        f"back: single operations, other engines and architectures, and scores of the same files "
        f"were not compared with this machine. The rows that they were trained on {said}; the same "
        f"bits of all weights: {'yes' if same else 'no'}.",
        "",
        *DISTANCES,
    ]
    for setting, one in found["trained"].items():
        lines += distance_rows(setting, one["from_the_other_machine"])
    lines += ["", *SCORES]
    for setting, one in found["trained"].items():
        lines.append(score_row(setting, one, other["study"][setting]))
    return lines


DISTANCES = (
    "| setting | step | largest difference of a weight | least cosine of a feature | "
    "features below .99 | PW-MCC of a seed with itself |",
    "|---|---|---|---|---|---|",
)
SCORES = ("| setting | PW-MCC over seeds | there | FVU | there |", "|---|---|---|---|---|")


def distance_rows(setting: str, by_step: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How far the weights are apart, a row for each step."""
    return [
        f"| {setting} | {step} | {one['largest_difference']:.1e} | "
        f"{one['least_cosine_of_a_feature']:.4f} | {one['share_of_features_below_0.99']:.1%} | "
        f"{one['pw_mcc_of_one_seed_with_itself']:.4f} |"
        for step, one in by_step.items()
    ]


def score_row(setting: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What a study would report on both machines."""
    numbers = (one[key] for key in ("pw_mcc", "fvu") for one in (ours, theirs))
    return f"| {setting} | {' | '.join(f'{number:.4f}' for number in numbers)} |"


def scores_line(found: Mapping[str, Any] | None) -> str:
    """What two machines' numbers of the same files have in common, as a sentence."""
    if found is None:
        return "not measured."
    equal = f"{found['same_bits']} of {found['numbers']} numbers have the same bits"
    partners = found["partners_that_differ"]
    matched = (
        "every feature has the same partner" if not partners else f"{partners} partners differ"
    )
    if found["of"] is None:
        return f"{equal}, and {matched}."
    return (
        f"{equal}; the largest relative difference of another is "
        f"{found['largest_relative_difference']:.1e} (`{found['of'].strip('/')}`); {matched}."
    )


def page() -> str:
    """What all machines together found, as a page."""
    read = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    every = {name: found for name, found in read.items() if "study" in found}
    partial_ones = {name: found for name, found in read.items() if "trained" in found}
    lines = [
        "# What is bit-equal, and how far machines are apart",
        "",
        "Written by `python benchmarks/reproducibility.py`, which trains three seeds of a tiny SAE "
        "of four architectures. What it means: [reproducibility](../../docs/reproducibility.md).",
        "",
        "| machine | processor | instructions of torch | versions | source | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in every.items():
        about = found["machine"]
        named = ("python", "numpy", "scipy", "numba", "torch")
        software = ", ".join(f"{one} {about[one]}" for one in named)
        lines.append(
            f"| {name} | {about['processor']}, {about['cores']} cores | "
            f"{about['torch_instructions']} | {software} | `{about['source']}` | "
            f"{found['seconds']:.0f} |"
        )
    lines += ["", "## On one machine", "", "Whether the weights have the same bits when trained"]
    lines[-1] += " in another way."
    for name, found in every.items():
        ways = list(
            dict.fromkeys(way for one in found["study"].values() for way in one["same_bits"])
        )
        lines += ["", f"| {name} | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
        for setting, one in found["study"].items():
            said = {True: "yes", False: "no", None: "–"}
            cells = [said[one["same_bits"].get(way)] for way in ways]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
    lines += ["", "## Between machines"]
    for name, found in every.items():
        if "against" not in found:
            continue
        differ = found["operations_that_differ"]
        same = [one for one in found["operations"] if one not in differ]
        bits = f"Other bits: {', '.join(differ) or 'none'}. "
        lines += [
            "",
            f"### {name} against {found['against']}",
            "",
            f"{bits}The same bits: {', '.join(same) or 'none'}.",
            "",
            "The same three files, scored on both (all that `husai compare --activations` writes: "
            f"scores, nulls, intervals): {scores_line(found.get('scores'))}",
            "",
            *DISTANCES,
        ]
        for setting, one in found["study"].items():
            lines += distance_rows(setting, one["from_the_other_machine"])
        other = every[found["against"]]["study"]
        lines += ["", *SCORES]
        lines += [score_row(name, one, other[name]) for name, one in found["study"].items()]
    for name, found in partial_ones.items():
        lines += trained_lines(name, found, every[found["against"]])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of this machine, in the names of the files")
    parser.add_argument("--against", type=Path, help="the .safetensors of another machine")
    parser.add_argument("--trained", action="store_true", help="compare the files of NAME/ alone")
    parser.add_argument("--machine", help="what trained them: processor, versions")
    options = parser.parse_args()
    if options.trained and not (options.against and options.machine):
        parser.error("--trained needs --against and --machine")
    theirs = other = None
    if options.against:
        theirs, other = load_file(options.against), reference(options.against)
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows, _ = planted_dictionary(PlantedConfig.model_validate(WORLD)).sample(4096)
    files = RESULTS / options.name
    files.mkdir(parents=True, exist_ok=True)
    if options.trained:
        write(options.name, trained_elsewhere(files, options.against, options.machine))
        return
    result: dict[str, Any] = {"machine": machine(), "operations": elementary(rows)}
    if other is not None:
        result["against"] = options.against.stem
        result["operations_that_differ"] = [
            name for name, bits in result["operations"].items() if other["operations"][name] != bits
        ]
    result["study"], weights = study(rows, theirs, files)
    result["seconds"] = round(time.perf_counter() - began, 1)
    # what was measured is kept, whatever becomes of the scores
    save_file(weights, RESULTS / f"{options.name}.safetensors")
    write(options.name, result)
    if other is None:
        result["scores_of_own_files"] = scores_of_files(files, rows)
    else:
        ours = scores_of_files(options.against.with_suffix(""), rows)
        result["scores"] = scores_apart(ours, other["scores_of_own_files"])
    result["seconds"] = round(time.perf_counter() - began, 1)
    write(options.name, result)


def reference(against: Path) -> dict[str, Any]:
    """What another machine found, checked to be whole before anything is trained."""
    other: dict[str, Any] = json.loads(against.with_suffix(".json").read_text())
    missing = [
        path
        for seed in SEEDS
        if not (path := against.with_suffix("") / f"seed{seed}.safetensors").is_file()
    ]
    if missing or "scores_of_own_files" not in other:
        sys.exit(f"{missing[0] if missing else against}: not there; bring all of {against.stem}*")
    return other


def write(name: str, result: Mapping[str, Any]) -> None:
    """Write what was found on a machine, and the page of all machines."""
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page())
    print(RESULTS.with_suffix(".md"))


if __name__ == "__main__":
    main()
