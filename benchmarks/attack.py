"""Attack the inputs of the project: change configurations and files at random, and read them.

    python benchmarks/attack.py [--configurations 2000] [--files 10000] [--seed 0] [--minutes 4]

It can be stopped at any time, and stops after --minutes; the same command continues with the next
case (--afresh starts from the beginning). Every case must be accepted or end with an InputError of
one line: no other exception, nothing executed, no file written, no memory beyond the limit, no
number that is not finite, and, in our own files with a digest, no weights other than the saved
ones. Besides the changed files there are bombs: small files that claim, or unpack to, more than the
memory limit; each must be refused. Writes benchmarks/results/attack.json and attack.md.
kill_runs.py kills whole runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attack"

MEMORY_BYTES = 2 * 2**30
"""Address space that a process may take beyond what its imports took."""

BATCH = 500
"""Files that one process reads."""

FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.mkdir"}

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 10**9, 10**30, -(10**30), 2**64, 10**5000, 0.5, -0.0),
    *(float("nan"), float("inf"), 1e308, "", "a" * 300, "../..", "'; DROP TABLE", "1e999", "nan"),
    *("\x00", "${oc.env:HOME}", "0 1 2", "k", "k <", "9**9**9 > 1", "(" * 5000, "not " * 5000),
    *([], {}, [[]], [None], {"": 1}, {"a": {}}, [10**30], "__import__('os').system('true')"),
    *("k.to_pickle('ran')", "[open('ran', 'w') for k in 'a']", "(lambda: open('ran', 'w'))()"),
    "k.pipe.__globals__['sys'].modules['os'].system('true') == 0",
)

PLAUSIBLE: tuple[Any, ...] = (1, 2, 3, 16, 64, 0.25, "topk", "relu", "k < 4", "k == d_sae / 4", [0])
"""Values that get further than most odd ones."""

ENVIRONMENTS = ("lm", "own", "campaign", "test")
"""Whose parameters are changed, beside those of base."""

Outcome = tuple[str, str]
"""What came of a case, and of which exception or file."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the place of every entry of a tree."""
    found = [path] if path else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, entry in items:
        found += leaves(entry, (*path, key))
    return found


def change(tree: Any, rng: random.Random) -> None:
    """Put an odd value in some place, take an entry out, or put one in."""
    places = leaves(tree)
    if not places:
        return
    *above, last = rng.choice(places)
    holder = tree
    for key in above:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.1:
        del holder[last]
    elif kind < 0.2 and isinstance(holder, dict):
        holder[rng.choice(["x", "..", "a" * 300, "", "k"])] = copy.deepcopy(rng.choice(ODD_VALUES))
    else:
        holder[last] = copy.deepcopy(rng.choice(PLAUSIBLE if rng.random() < 0.4 else ODD_VALUES))


SEARCH = {
    "samples": 3,
    "fields": {
        "architecture": {"choice": ["topk"]},
        "d_sae": {"choice": [16, 64]},
        "k": {"integer": [1, 8], "when": "architecture == 'topk'"},
        "training.dead_latents": {"choice": ["none", "auxk"]},
    },
    "constraints": ["k <= d_sae / 4"],
}


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put an environment's parameters over those of base, field by field."""
    found = dict(base)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        found[name] = merged(base[name], value) if both else value
    return found


def attack_configurations(numbers: range, seed: int, until: float) -> tuple[Counter[Outcome], int]:
    """Change the parameters of an environment; check them, and lay out the plan of those taken.

    Gives the outcomes and how many cases there were time for.
    """
    import yaml
    from kedro.framework.project import pipelines
    from kedro.framework.startup import bootstrap_project
    from kedro.validation.type_extractor import TypeExtractor

    from husai.calibration.study import plan_study
    from husai.campaign import plan_saes
    from husai.errors import InputError
    from husai.hooks.checks import parameter_problems

    bootstrap_project(ROOT)
    types: dict[str, Any] = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
    base: dict[str, Any] = {}
    for path in sorted((ROOT / "conf" / "base").glob("parameters*.yml")):
        base |= yaml.safe_load(path.read_text())
    base["campaign"]["plan"]["random"] = SEARCH
    shipped = [base]
    for env in ENVIRONMENTS:
        own = yaml.safe_load((ROOT / "conf" / env / "parameters.yml").read_text())
        shipped.append(merged(base, own))

    def check(parameters: dict[str, Any]) -> Outcome:
        try:
            lines = parameter_problems(parameters, types)
            if any("\n" in line for line in lines):
                return ("several lines", "")
            # each plan whose group is taken, whatever is wrong with the others
            refused = {re.split(r"[.: ]", line)[0] for line in lines}
            for name, lay_out in (("campaign", plan_saes), ("planted_truth", plan_study)):
                if name in parameters and name not in refused:
                    group = types[name].model_validate(parameters[name])
                    lay_out(group.plan if name == "campaign" else group)
            return REFUSED if lines else ("taken", "")
        except InputError as error:
            return ("several lines", str(error)) if "\n" in str(error) else REFUSED
        except Exception as error:
            return ("traceback", f"{type(error).__name__}: {str(error)[:100]}")

    for parameters in shipped:
        assert check(copy.deepcopy(parameters)) == ("taken", "")
    done: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        )
        if event in FORBIDDEN or writes:
            done.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    outcomes: Counter[Outcome] = Counter()
    for number in numbers:
        if time.monotonic() > until:
            return outcomes, number - numbers.start
        rng = random.Random(f"{seed} {number}")
        parameters = copy.deepcopy(rng.choice(shipped))
        # half of the changes go where text is read as a condition
        if rng.random() < 0.5:
            change(parameters["campaign"]["plan"]["random"], rng)
        for _ in range(rng.randint(1, 3)):
            change(parameters, rng)
        outcomes[check(parameters)] += 1
        outcomes.update(("executed", what) for what in done)
        done.clear()
    return outcomes, len(numbers)


REFUSED: Outcome = ("refused in a line", "")


def make_sources(folder: Path) -> None:
    """Write a small SAE in every format, dictionaries and rows."""
    import torch
    from safetensors.torch import save_file

    from husai.sae import (
        BankTrainingConfig,
        SAEConfig,
        export_sae,
        save_sae,
        train_bank,
    )

    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    training = BankTrainingConfig(steps=5, batch_size=16, device="cpu", eval_interval=5)
    (sae,) = train_bank(rows, [SAEConfig(architecture="topk", d_sae=10, k=2)], training)
    (folder / "own").mkdir()
    save_sae(sae, folder / "own" / "sae.safetensors")
    for format_ in ("saelens", "dictionary_learning", "sparsify"):
        export_sae(sae, folder / format_, format_)
    for name, values in (("dictionary", sae.W_dec), ("rows", rows)):
        (folder / name).mkdir()
        np.save(folder / name / f"{name}.npy", values.numpy())
        (folder / f"{name}_tensors").mkdir()
        save_file({"W_dec": values.contiguous()}, folder / f"{name}_tensors" / "a.safetensors")


def change_bytes(path: Path, rng: random.Random) -> None:
    """Flip, cut, fill, repeat or insert bytes; of a JSON file, change an entry."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".json" and rng.random() < 0.7:
        tree = json.loads(content)
        for _ in range(rng.randint(1, 2)):
            change(tree, rng)
        try:
            path.write_text(json.dumps(tree))
        except ValueError:  # a number of more digits than json writes
            path.write_text('{"k": 1' + "0" * 5000 + "}")
        return
    # headers stand in front: most changes go there
    end = min(len(content), 400) if rng.random() < 0.6 else len(content)
    at = rng.randrange(max(1, end))
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(max(1, end))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        content[at : at + 8] = rng.randbytes(8)
    elif kind == 3:
        content[at : at + rng.randint(1, 64)] = b"\0" * rng.randint(0, 64)
    elif kind == 4:
        content[at:at] = content[at : at + rng.randint(1, 64)]
    else:
        content[at : at + rng.randint(1, 9)] = str(rng.choice([10**9, 10**18, 10**30, -1])).encode()
    path.write_bytes(content)


def read_case(source: Path, number: int, seed: int) -> Outcome:
    """Change one file of one source and read it."""
    import torch

    from husai.compare.files import load_activations
    from husai.errors import InputError
    from husai.sae import load_dictionary, load_sae

    rng = random.Random(f"{seed} {number}")
    names = sorted(path.name for path in source.iterdir())
    name = names[number % len(names)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        shutil.copytree(source / name, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        change_bytes(rng.choice(files), rng)
        single = name not in ("saelens", "dictionary_learning", "sparsify")
        path = files[0] if single else folder
        load: Callable[[Path], Any] = load_sae
        if name.startswith("rows"):
            load = load_activations
        elif name.startswith("dictionary_t") or rng.random() < 0.5:
            load = load_dictionary
        try:
            result = load(path)
            if name == "own" and load is load_sae:
                saved = load_sae(source / name / "sae.safetensors")
                if not all(torch.equal(getattr(result, w), getattr(saved, w)) for w in WEIGHTS):
                    return ("other numbers", f"{name} by {load.__name__}")
            values = result[0] if isinstance(result, tuple) else result
            values = getattr(values, "W_dec", values)
            if not np.isfinite(np.asarray(values)).all():
                return ("not finite", f"{name} by {load.__name__}")
            return ("taken", "")
        except InputError as error:
            return ("several lines", name) if "\n" in str(error) else REFUSED
        except Exception as error:
            return ("traceback", f"{name}: {type(error).__name__}: {str(error)[:80]}")


WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def limit_memory() -> None:
    """Take no more address space than there is in use, and the limit."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)


def peak_kilobytes() -> int:
    """Give the most memory that this process held; getrusage counts what its parent held, too."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line)


def read_batch(source: Path, start: int, stop: int, seed: int, until: float) -> None:
    """Read some cases under the memory limit; print each outcome, so that a death shows where."""
    read_case(source, 0, seed)  # imports what is imported once
    limit_memory()
    for number in range(start, stop):
        if time.monotonic() > until:
            break
        print(json.dumps([number, *read_case(source, number, seed)]), flush=True)
    print(json.dumps(peak_kilobytes()), flush=True)


def attack_files(numbers: range, seed: int, until: float) -> tuple[Counter[Outcome], int, float]:
    """Read changed files in processes of their own.

    Gives the outcomes, how many cases there were time for, and the largest memory in MB.
    """
    outcomes: Counter[Outcome] = Counter()
    peak = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary)
        make_sources(source)
        start = numbers.start
        while start < numbers.stop and time.monotonic() < until:
            stop = min(numbers.stop, start + BATCH)
            part = [str(source), str(start), str(stop), str(until)]
            command = [sys.executable, __file__, "--read", *part]
            done = subprocess.run(
                [*command, "--seed", str(seed)], capture_output=True, text=True, check=False
            )
            for line in done.stdout.splitlines():
                entry = json.loads(line)
                if isinstance(entry, list):
                    outcomes[entry[1], entry[2]] += 1
                    start = entry[0] + 1
                else:
                    peak = max(peak, entry / 1024)
            if done.returncode:  # by the case after the last one that was told
                outcomes["died", f"case {start}: {done.stderr[-200:]}"] += 1
                start += 1
    return outcomes, start - numbers.start, peak


def make_bombs(folder: Path) -> None:
    """Write small files that ask for more memory than there is."""
    import torch

    def npy_header(shape: str) -> bytes:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

    strided = torch.zeros(1).expand(2**15, 2**20)
    torch.save({"encoder.weight": strided, "decoder.weight": strided.T}, folder / "strided.pt")
    plain = folder / "plain.pt"
    torch.save({"W_dec": torch.zeros(2**26)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(folder / "packed.pt", "w") as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED, 1)
    plain.unlink()
    (folder / "claims.npy").write_bytes(npy_header("(1048576, 1048576)") + b"\0" * 64)
    with zipfile.ZipFile(folder / "claims.npz", "w") as archive:
        archive.writestr("W_dec.npy", npy_header("(1048576, 1048576)") + b"\0" * 64)
    with (
        zipfile.ZipFile(
            folder / "zeros.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive,
        archive.open("W_dec.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy_header("(32768, 32768)"))
        for _ in range(2**10):
            member.write(bytes(2**22))
    header = json.dumps(
        {"W_dec": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    ).encode()
    (folder / "claims.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    deep = folder / "deep"
    deep.mkdir()
    (deep / "cfg.json").write_text("[" * 200_000)
    wide = folder / "wide"
    wide.mkdir()
    (wide / "cfg.json").write_text(json.dumps({"d_sae": 10**18, "d_in": 10**18}))
    (wide / "sae_weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def read_bomb(path: Path) -> Outcome:
    """Read a bomb by every reader: each must refuse it in a line."""
    from husai.compare.files import load_activations
    from husai.errors import InputError
    from husai.sae import load_dictionary, load_sae

    for load in (load_sae, load_dictionary, load_activations):
        try:
            load(path)
            return ("taken", path.name)
        except InputError as error:
            if "\n" in str(error):
                return ("several lines", path.name)
        except Exception as error:
            return ("traceback", f"{path.name}: {type(error).__name__}: {str(error)[:80]}")
    return REFUSED


def read_bombs(paths: list[Path]) -> None:
    """Read bombs under the memory limit; print each outcome, so that a death shows where."""
    import torch  # noqa: F401 - what is imported does not count

    limit_memory()
    for path in paths:
        print(json.dumps(read_bomb(path)), flush=True)
    print(json.dumps(peak_kilobytes()), flush=True)


def attack_with_bombs() -> tuple[Counter[Outcome], float]:
    """Read the bombs in another process, a new one after a death; give outcomes and peak MB."""
    outcomes: Counter[Outcome] = Counter()
    peak = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        make_bombs(Path(temporary))
        left = sorted(Path(temporary).iterdir())
        while left:
            command = [sys.executable, __file__, "--bombs", *map(str, left)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            for line in done.stdout.splitlines():
                entry = json.loads(line)
                if isinstance(entry, list):
                    # one that is taken is a bomb that went off, whatever its size
                    outcomes["went off" if entry[0] == "taken" else entry[0], entry[1]] += 1
                    left.pop(0)
                else:
                    peak = max(peak, entry / 1024)
            if left:
                outcomes["died", f"{left.pop(0).name}: {done.stderr[-200:]}"] += 1
    return outcomes, peak


KINDS = (
    *("taken", "refused in a line", "traceback", "several lines", "executed", "other numbers"),
    *("not finite", "died", "went off"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=2000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--afresh", action="store_true", help="forget the cases there were")
    parser.add_argument("--read", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--bombs", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        source, start, stop, until = options.read
        read_batch(Path(source), int(start), int(stop), options.seed, float(until))
        return
    if options.bombs:
        read_bombs(options.bombs)
        return
    until = time.monotonic() + 60 * options.minutes
    state = RESULTS.with_suffix(".json")
    table: dict[str, Any] = {"seed": options.seed}
    if state.is_file() and not options.afresh:
        before = json.loads(state.read_text())
        table = before if before.get("seed") == options.seed else table
    began = time.monotonic()
    if "bombs" not in table:
        outcomes, peak = attack_with_bombs()
        table["bombs"] = added(None, outcomes, sum(outcomes.values()), began, peak)
        write_table(table)
    for what, wanted in (("configurations", options.configurations), ("files", options.files)):
        done = table.get(what, {}).get("cases", 0)
        while done < wanted and time.monotonic() < until:
            began, peak = time.monotonic(), 0.0
            numbers = range(done, min(wanted, done + BATCH))
            if what == "files":
                outcomes, cases, peak = attack_files(numbers, options.seed, until)
            else:
                outcomes, cases = attack_configurations(numbers, options.seed, until)
            table[what] = added(table.get(what), outcomes, cases, began, peak)
            done += cases
            write_table(table)
    print(RESULTS.with_suffix(".md").read_text())
    for what, row in table.items():
        if what != "seed":
            for kind, whats in row["found"].items():
                print(what, kind, json.dumps(whats, indent=1))


def added(
    before: dict[str, Any] | None,
    outcomes: Counter[Outcome],
    cases: int,
    began: float,
    peak: float,
) -> dict[str, Any]:
    """Add outcomes to those before: the counts, and of what is not as it must be which it was."""
    row: dict[str, Any] = before or {"cases": 0, "outcomes": {}, "found": {}, "seconds": 0.0}
    totals = Counter(row["outcomes"])
    for (kind, what), count in outcomes.items():
        totals[kind] += count
        if kind not in KINDS[:2]:
            found = row["found"].setdefault(kind, {})
            found[what] = found.get(what, 0) + count
    return {
        **row,
        "cases": row["cases"] + cases,
        "outcomes": dict(totals),
        "seconds": round(row["seconds"] + time.monotonic() - began, 1),
        **({"peak_mb": round(max(peak, row.get("peak_mb", 0)))} if peak else {}),
    }


def write_table(table: dict[str, Any]) -> None:
    """Write the results, as JSON and as Markdown."""
    RESULTS.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    lines = [f"| what | cases | {' | '.join(KINDS)} |", f"|---|{'---:|' * (len(KINDS) + 1)}"]
    for what, row in table.items():
        if what != "seed":
            counts = " | ".join(str(row["outcomes"].get(kind, 0)) for kind in KINDS)
            lines.append(f"| {what} | {row['cases']} | {counts} |")
    text = "\n".join(lines) + "\n"
    RESULTS.with_suffix(".md").write_text(f"# What an attack found\n\n{text}")


if __name__ == "__main__":
    main()
