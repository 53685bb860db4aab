"""Runs small runs of one or two builds and compares what they say of each step; see scripts/loss-compare."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).resolve().parent.parent / "tests/golden/losses.json"
STEPS = 6
# What any processor with AVX2 has, so that a stored number means something elsewhere.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
# Of the first step's losses and gradients, where another processor rounds otherwise all the same. Later steps are not
# compared there: with beta1 = 0 a weight whose gradient is rounding noise moves as far as any other.
TOLERANCE = 1e-3
# Of a line of stats.jsonl, what does not depend on the machine's speed.
NUMBERS = ("loss_", "grad_", "lr_", "score_", "saturation_", "sigma_")
ALSO = ("nearest", "pixel_spread", "latent_spread", "feature_spread", "reconstruction", "roughness")

# Name, preset, what is set, ranks.
CASES = [
    ("demo", "demo", [], 1),
    ("demo, micro-batches", "demo", ["train.micro_batch=8", "g.recompute=true", "e.recompute=true"], 1),
    ("demo, two ranks", "demo", [], 2),
    ("cifar10", "cifar10", [], 1),
    ("cifar10, bfloat16", "cifar10", ["train.precision=bf16"], 1),
    ("cifar10_beyond", "cifar10_beyond", ["beyond.codes=1", "beyond.reconstruct=1", "beyond.augment=colour,cutout"], 1),
    (
        "hi_e, small",
        "hi_e",
        ["g.res=32", "f.res=32", "e.res=64", "latent.dim=80", "g.ch=8", "f.ch=8", "g.attn_res=16", "f.attn_res=16"]
        + ["h.width=64", "j.width=64", "e.mlp_width=64"],
        1,
    ),
]


def shard_imagenet(programs: Path, out: Path) -> None:
    """A hundred drawn pictures."""
    command = [programs / "shard-imagenet", "synth", "--output", out, "--images", "96", "--classes", "4", "--size", "64"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(programs: Path, data: Path, out: Path, case: tuple, pinned: bool) -> dict:
    """What a run says of its steps, and the hashes of what it saved."""
    name, preset, keys, ranks = case
    keys = [*keys, "train.batch=16", f"train.steps={STEPS}", "train.max_minutes=0", "log.every=1"]
    keys += ["checkpoint.every=1000", "images.every=1000", "images.standing_images=16", "eval.probe_images=0"]
    command = [programs / "trainer"]
    if ranks > 1:
        command += ["launch", "--ranks", str(ranks), "--"]
    command += ["run", "--preset", preset, "--data", data, "--out", out, "--device", "cpu"]
    for key in keys:
        command += ["--set", key]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(PINNED if pinned else {})}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"loss-compare: {name} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    wanted = lambda key: key.startswith(NUMBERS) or key in ALSO  # noqa: E731
    steps = [{key: line[key] for key in sorted(line) if wanted(key)} for line in lines]
    newest = max((out / "checkpoints").glob("step-*/manifest.json"))
    files = json.loads(newest.read_text())["files"]
    return {"steps": steps, "state": {file: about["sha256"] for file, about in sorted(files.items())}}


def difference(a: dict, b: dict) -> tuple[float, str]:
    """The largest relative difference of a number that both say, and where the first one is."""
    largest, first = 0.0, ""
    if len(a["steps"]) != len(b["steps"]):
        return float("inf"), f"{len(a['steps'])} and {len(b['steps'])} steps"
    for step, (one, other) in enumerate(zip(a["steps"], b["steps"], strict=True), 1):
        for key in one.keys() & other.keys():
            x, y = one[key], other[key]
            if x == y or x is None or y is None:
                continue
            off = abs(x - y) / max(abs(x), abs(y), 1e-2)
            first = first or f"step {step}, {key}: {x} and {y}"
            largest = max(largest, off)
    return largest, first


def first_step(case: dict) -> dict:
    """Its losses and gradients alone."""
    loss = lambda key: key.startswith(("loss_", "grad_"))  # noqa: E731
    return {"steps": [{key: step[key] for key in step if loss(key)} for step in case["steps"][:1]]}


def compare(sides: list[Path]) -> bool:
    """Two builds, to the bit."""
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shard_imagenet(sides[0], data)
        for case in CASES:
            a, b = (run(side, data, Path(folder) / f"{case[0]} {i}", case, False) for i, side in enumerate(sides))
            off, where = difference(a, b)
            state = a["state"] == b["state"]
            said[case[0]] = {"steps": len(a["steps"]), "numbers": off == 0, "state": state, "largest": off}
            words = "equal to the bit" if off == 0 and state else where or "the states differ"
            print(f"{case[0]:<22} {len(a['steps'])} steps: {words}", flush=True)
    equal = all(case["numbers"] and case["state"] for case in said.values())
    print(json.dumps({"equal": equal, "cases": said}))
    return equal


def numbers(programs: Path) -> dict:
    """What this build says of all cases but that of bfloat16, whose kernels another processor may not have."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shard_imagenet(programs, data)
        cases = [case for case in CASES if "bfloat16" not in case[0]]
        return {case[0]: {"steps": run(programs, data, Path(folder) / case[0], case, True)["steps"]} for case in cases}


def main() -> int:
    if sys.argv[1] == "--store":
        STORED.write_text(json.dumps(numbers(Path(sys.argv[2])), indent=0) + "\n")
        return 0
    if sys.argv[1] != "--stored":
        return 0 if compare([Path(side) for side in sys.argv[1:3]]) else 1
    stored, ours = json.loads(STORED.read_text()), numbers(Path(sys.argv[2]))
    said = {}
    for name, case in ours.items():
        before = stored.get(name, {"steps": []})
        first, where = difference(first_step(before), first_step(case))
        off, later = difference(before, case) if first == 0 else (0.0, "")
        said[name] = {"first": first, "later": off, "good": first <= TOLERANCE and off == 0}
        words = f"the first step is off by {first:.1e}; {where}" if first else later or "equal to the bit"
        print(f"{name:<22} {words}", flush=True)
    equal = all(case["good"] for case in said.values()) and said.keys() == stored.keys()
    print(json.dumps({"equal": equal, "tolerance": TOLERANCE, "cases": said}))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
