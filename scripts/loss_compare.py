"""Runs small runs of one or two builds and compares what they say of each step; see scripts/loss-compare."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).resolve().parent.parent / "tests/golden/losses.json"
STEPS = 6
# What any processor with AVX2 has, so that a stored number means something elsewhere.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
# Of the first step's losses and gradients, on a processor that rounds otherwise. Later steps are not compared there: with
# beta1 = 0 a weight whose gradient is rounding noise moves as far as any other.
TOLERANCE = 1e-3
# Of a line of stats.jsonl, what does not depend on the machine's speed.
NUMBERS = ("loss_", "grad_", "lr_", "score_", "saturation_", "sigma_")
ALSO = ("nearest", "pixel_spread", "latent_spread", "feature_spread", "reconstruction", "roughness")
# Of a checkpoint's manifest, what does not say where and when it was made.
SAVED = ("step", "of_d", "cursor", "adam_steps", "rollbacks")
# What a launcher or a shell may have set.
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RUST_LOG", "OMP_NUM_THREADS")

# Name, preset, what is set, ranks, steps of the session that is stopped first.
CASES = [
    ("demo", "demo", [], 1, 0),
    ("demo, resumed", "demo", [], 1, 3),
    ("demo, micro-batches", "demo", ["train.micro_batch=8", "g.recompute=true", "e.recompute=true"], 1, 0),
    ("demo, two ranks", "demo", [], 2, 0),
    ("cifar10", "cifar10", [], 1, 0),
    ("cifar10, bfloat16", "cifar10", ["train.precision=bf16"], 1, 0),
    ("cifar10_beyond", "cifar10_beyond", ["beyond.codes=1", "beyond.reconstruct=1", "beyond.augment=colour,cutout"], 1, 0),
    (
        "hi_e, small",
        "hi_e",
        ["g.res=32", "f.res=32", "e.res=64", "latent.dim=80", "g.ch=8", "f.ch=8", "g.attn_res=16", "f.attn_res=16"]
        + ["h.width=64", "j.width=64", "e.mlp_width=64"],
        1,
        0,
    ),
]


def call(command: list, pinned: bool) -> None:
    """Runs a program to its end, or says why there is none."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith("SLURM_")}
    environment = {**kept, "OMP_NUM_THREADS": "1", **(PINNED if pinned else {})}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        give_up(str(error))
    if ended.returncode != 0:
        give_up(f"{command[0]} {command[1]} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")


def give_up(why: str) -> None:
    """Exit code 2: nothing was found out."""
    print(f"loss-compare: {why}", file=sys.stderr)
    sys.exit(2)


def shard_imagenet(programs: Path, out: Path) -> None:
    """96 drawn pictures."""
    size = ["--images", "96", "--classes", "4", "--size", "64"]
    call([programs / "shard-imagenet", "synth", "--output", out, *size], False)


def run(programs: Path, data: Path, out: Path, case: tuple, pinned: bool) -> dict:
    """What a run says of its steps, and what it saved."""
    _, preset, keys, ranks, first = case
    keys = [*keys, "train.batch=16", "train.max_minutes=0", "log.every=1", "checkpoint.every=1000"]
    keys += ["images.every=1000", "images.standing_images=16", "eval.probe_images=0"]
    start = [programs / "trainer"] + (["launch", "--ranks", str(ranks), "--"] if ranks > 1 else [])
    begin = [*start, "run", "--preset", preset, "--data", data, "--out", out, "--device", "cpu"]
    for key in [*keys, f"train.steps={first or STEPS}"]:
        begin += ["--set", key]
    call(begin, pinned)
    if first:
        call([*start, "run", "--resume", "--out", out, "--device", "cpu", "--set", f"train.steps={STEPS}"], pinned)
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    wanted = lambda key: key.startswith(NUMBERS) or key in ALSO  # noqa: E731
    steps = [{key: line[key] for key in sorted(line) if wanted(key)} for line in lines]
    if len(steps) != STEPS or not all("loss_d" in step and "loss_g" in step for step in steps):
        give_up(f"{case[0]}: {len(steps)} lines of statistics, or no losses in them")
    manifest = json.loads(max((out / "checkpoints").glob("step-*/manifest.json")).read_text())
    saved = {key: manifest.get(key) for key in SAVED}
    saved["files"] = {file: about["sha256"] for file, about in sorted(manifest["files"].items())}
    return {"steps": steps, "saved": saved}


def difference(a: list[dict], b: list[dict]) -> tuple[float, str]:
    """The largest relative difference of a number, and the first one. What one side alone says differs, too."""
    largest, first = 0.0, ""
    if len(a) != len(b):
        return math.inf, f"{len(a)} and {len(b)} steps"
    for step, (one, other) in enumerate(zip(a, b, strict=True), 1):
        for key in sorted(one.keys() | other.keys()):
            x, y = one.get(key, "nothing"), other.get(key, "nothing")
            if x == y:
                continue
            number = all(isinstance(value, (int, float)) for value in (x, y))
            off = abs(x - y) / max(abs(x), abs(y), 1e-2) if number else math.inf
            first = first or f"step {step}, {key}: {x} and {y}"
            largest = max(largest, off)
    return largest, first


def compare(sides: list[Path]) -> bool:
    """Two builds, to the bit."""
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shard_imagenet(sides[0], data)
        for case in CASES:
            a, b = (run(side, data, Path(folder) / f"{case[0]} {i}", case, False) for i, side in enumerate(sides))
            off, where = difference(a["steps"], b["steps"])
            saved = [key for key in a["saved"] if a["saved"][key] != b["saved"][key]]
            said[case[0]] = {"numbers": off == 0, "saved": not saved, "first": where}
            words = where or (f"what was saved differs: {', '.join(saved)}" if saved else "equal to the bit")
            print(f"{case[0]:<22} {len(a['steps'])} steps: {words}", flush=True)
    equal = all(case["numbers"] and case["saved"] for case in said.values())
    print(json.dumps({"equal": equal, "cases": said}))
    return equal


def processor() -> list[str]:
    """Which processor this is: one like it rounds alike."""
    wanted = ("vendor_id", "cpu family", "model", "model name")
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    first: dict[str, str] = {}
    for name, _, value in lines:
        first.setdefault(name.strip(), value.strip())
    return [first.get(name, "") for name in wanted]


def numbers(programs: Path) -> dict:
    """What this build says of all cases but that of bfloat16, whose kernels another processor may not have."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shard_imagenet(programs, data)
        cases = [case for case in CASES if "bfloat16" not in case[0]]
        said = {case[0]: run(programs, data, Path(folder) / case[0], case, True)["steps"] for case in cases}
    if any(value is None for steps in said.values() for step in steps for value in step.values()):
        give_up("a number is not finite")
    return {"processor": processor(), "cases": said}


def first_step(steps: list[dict]) -> list[dict]:
    """Its losses and gradients alone."""
    return [{key: step[key] for key in step if key.startswith(("loss_", "grad_"))} for step in steps[:1]]


def stored(programs: Path) -> bool:
    """This build against the stored numbers."""
    before, ours = json.loads(STORED.read_text()), numbers(programs)
    alike, said = before["processor"] == ours["processor"], {}
    for name in sorted(before["cases"].keys() | ours["cases"].keys()):
        sides = [side["cases"].get(name, []) for side in (before, ours)]
        off, where = difference(*sides) if alike else difference(*map(first_step, sides))
        good = off <= (0 if alike else TOLERANCE)
        said[name] = {"good": good, "first": where}
        how = "equal to the bit" if off == 0 else f"within {TOLERANCE} in the first step" if good else where
        print(f"{name:<22} {how}", flush=True)
    good = all(case["good"] for case in said.values())
    print(json.dumps({"good": good, "to_the_bit": alike, "processor": ours["processor"], "cases": said}))
    return good


def main() -> int:
    if sys.argv[1] == "--store":
        STORED.write_text(json.dumps(numbers(Path(sys.argv[2])), indent=0) + "\n")
        return 0
    if sys.argv[1] == "--stored":
        return 0 if stored(Path(sys.argv[2])) else 1
    return 0 if compare([Path(side) for side in sys.argv[1:3]]) else 1


if __name__ == "__main__":
    sys.exit(main())
