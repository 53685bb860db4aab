"""The program `trainer`, compiled, which runs with the libraries of the torch that is installed beside it."""

import importlib.util
import os
import sys
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Becomes the program, with this process's arguments."""
    # Not imported: that takes seconds.
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        sys.exit("error: torch is not installed in this environment; `pip install torch==2.11.*`")
    libraries = Path(next(iter(torch.submodule_search_locations))) / "lib"
    if not (libraries / "libtorch_cpu.so").exists():
        sys.exit(f"error: no libtorch_cpu.so in {libraries}; `pip install --force-reinstall torch==2.11.*`")
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{before}" if before else str(libraries)
    program = Path(__file__).with_name("trainer")
    os.execv(program, ["trainer", *sys.argv[1:]])
