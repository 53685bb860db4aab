"""The program `trainer`, compiled, which runs with the libraries of the torch that is installed beside it."""

import importlib.util
import os
import re
import sys
from pathlib import Path

__all__ = ["main"]

# What the program was compiled for.
WANTED = "2.11."


def main() -> None:
    """Becomes the program, with this process's arguments."""
    # Not imported: that takes seconds.
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        sys.exit("error: torch is not installed in this environment; `pip install torch==2.11.*`")
    libraries = Path(next(iter(torch.submodule_search_locations))) / "lib"
    if not (libraries / "libtorch_cpu.so").exists():
        sys.exit(f"error: no libtorch_cpu.so in {libraries}; `pip install --force-reinstall torch==2.11.*`")
    # Its own words: `__version__ = '2.11.0+cu130'`.
    text = (libraries.parent / "version.py").read_text() if (libraries.parent / "version.py").exists() else ""
    version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
    if version is None or not version[1].startswith(WANTED):
        found = version[1] if version else "of no known version"
        sys.exit(f"error: the torch in {libraries.parent} is {found}, and {WANTED}* is wanted; `pip install torch=={WANTED}*`")
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{before}" if before else str(libraries)
    program = Path(__file__).with_name("trainer")
    os.execv(program, ["trainer", *sys.argv[1:]])
