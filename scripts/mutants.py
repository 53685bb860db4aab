"""Mutants of the code that a run's exactness rests on, and the tests that notice them.

All mutants are compiled at once, each behind a number that is chosen when a test starts, so that 200 of them
take two builds and not 200. See scripts/mutants.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tree_sitter_rust
from tree_sitter import Language, Parser

# What is mutated, how many mutants of it, the crate, and which of its tests are tried first.
AREAS = [
    ("sampler", 55, "pipeline", {"pipeline/src/sampler.rs": "sampler"}),
    ("cursor", 15, "pipeline", {"pipeline/src/cursor.rs": "cursor", "pipeline/src/loader.rs": "loader"}),
    ("entropy decoder", 75, "pipeline", {
        "pipeline/src/decode/entropy.rs": "decode",
        "pipeline/src/decode/entropy/bits.rs": "decode",
        "pipeline/src/decode/lookup.rs": "decode",
    }),
    ("checkpoint", 55, "trainer", {
        "trainer/src/checkpoint/mod.rs": "checkpoint",
        "trainer/src/checkpoint/tensors.rs": "checkpoint",
        "trainer/src/checkpoint/writer.rs": "checkpoint",
    }),
]
# Tests of other packages that reach an area too, tried last: (package, test target, filter).
FURTHER = {"pipeline": [], "trainer": [("integration", "stories", "durability")]}
# Tests that count calls or time, and servers, whose minutes notice little: so the list of survivors is an upper bound.
PASSED_OVER = ["allocations", "memory", "remote", "stores"]

OTHER = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "&": "|", "|": "&", "^": "|", "<<": ">>", ">>": "<<",
    "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "&=": "|=", "<<=": ">>=", ">>=": "<<=",
}  # fmt: skip

SWITCH = """
#[doc(hidden)]
#[allow(warnings, clippy::all)]
pub fn __mutant(n: usize) -> bool {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    static ON: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
        std::env::var("MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
    });
    static REACHED: [AtomicBool; 1024] = [const { AtomicBool::new(false) }; 1024];
    if *ON == 0 && !REACHED[n].swap(true, Relaxed) && let Some(path) = std::env::var_os("MUTANTS_REACHED") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(format!("{n}\\n").as_bytes()));
    }
    n == *ON
}
"""


class Site:
    """One place and what stands there instead."""

    def __init__(self, path, node, new, what):
        self.path, self.start, self.end = path, node.start_byte, node.end_byte
        self.line, self.new, self.what = node.start_point[0] + 1, new, what

    def key(self):
        return (self.path, self.start, self.end, self.what)


def sites(path, text):
    """All places of a file that have a mutant."""
    source = text.encode()
    tree = Parser(Language(tree_sitter_rust.language())).parse(source)
    found = []

    def said(node):
        return source[node.start_byte : node.end_byte].decode()

    def walk(node, inside):
        kind = node.type
        if kind in ("const_item", "static_item", "token_tree", "attribute_item", "array_type", "type_arguments",
                    "match_pattern", "tuple_struct_pattern", "range_pattern"):  # fmt: skip
            return
        if kind in ("mod_item", "function_item", "impl_item", "use_declaration"):
            before = node.prev_sibling
            while before is not None and before.type in ("attribute_item", "line_comment"):
                if "test" in said(before) and before.type == "attribute_item":
                    return
                before = before.prev_sibling
        if kind == "function_item":
            words = [said(child) for child in node.children if child.type == "function_modifiers"]
            if any("const" in word for word in words):
                return
            inside = True
        if inside:
            new, what = None, None
            if kind in ("binary_expression", "compound_assignment_expr"):
                left, sign, right = (node.child_by_field_name(n) for n in ("left", "operator", "right"))
                other = OTHER.get(said(sign))
                chain = any(child.type == "let_condition" for child in node.children) or "let " in said(node)
                if other and not chain:
                    new = f"{said(left)} {other} {said(right)}"
                    what = f"`{said(sign)}` becomes `{other}`"
            elif kind == "unary_expression" and node.children[0].type == "!":
                new, what = said(node)[1:], "`!` is gone"
            elif kind == "integer_literal" and node.parent.type not in ("field_expression", "tuple_expression"):
                number = re.match(r"(0x[0-9a-fA-F_]+|[0-9_]+)(.*)", said(node))
                value = int(number[1].replace("_", ""), 0) + 1
                new, what = f"{value}{number[2]}", f"`{said(node)}` becomes `{value}`"
            elif kind == "expression_statement" and node.children[0].type in ("call_expression", "try_expression"):
                new, what = "", f"`{' '.join(said(node).split())[:60]}` is gone"
            elif kind == "if_expression":
                test = node.child_by_field_name("condition")
                if "let " not in said(test):
                    found.append(Site(path, test, "false", "the condition is false"))
            if what:
                found.append(Site(path, node, new, what))
        for child in node.children:
            walk(child, inside)

    walk(tree.root_node, False)
    return found


def mutated(text, chosen):
    """The text with each chosen site behind its number; no line moves."""
    source = text.encode()
    roots, stack = [], []
    for number, site in sorted(chosen, key=lambda pair: (pair[1].start, -pair[1].end)):
        while stack and stack[-1][1].end <= site.start:
            stack.pop()
        entry = (number, site, [])
        (stack[-1][2] if stack else roots).append(entry)
        stack.append(entry)

    def render(start, end, inner):
        out, at = b"", start
        for number, site, within in inner:
            out += source[at : site.start]
            old = render(site.start, site.end, within).decode()
            if site.new == "":
                out += f"if !crate::__mutant({number}) {{ {old} }}".encode()
            else:
                out += f"(if crate::__mutant({number}) {{ {flat(site.new)} }} else {{ {old} }})".encode()
            at = site.end
        return out + source[at:end]

    return render(0, len(source), roots).decode()


def flat(text):
    """On one line, without its comments."""
    return " ".join(re.sub(r"//[^\n]*", "", text).split())


def build(tree, target, packages):
    """Compiles the tests; gives executables by (package, target), or the lines that were refused."""
    command = ["cargo", "test", "--workspace", "--no-run", "--message-format=json"]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target))
    # By the same name as in the repository, so that what was compiled there, and copied here, is found good.
    environment.setdefault("LIBTORCH", str(Path(__file__).resolve().parent.parent / ".libtorch"))
    # The bins of the workspace are what the stories start.
    for words in (["cargo", "build", "--workspace", "--bins", "--message-format=json"], command):
        made = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True)
        refused, programs = set(), {}
        for line in made.stdout.splitlines():
            message = json.loads(line)
            if message["reason"] == "compiler-message" and message["message"]["level"] == "error":
                refused |= {(s["file_name"], n) for s in message["message"]["spans"]
                            for n in range(s["line_start"], s["line_end"] + 1) if s["is_primary"]}  # fmt: skip
            if message["reason"] == "compiler-artifact" and message.get("executable") and message["profile"]["test"] \
                    and message["target"]["kind"] != ["bin"]:  # a program has its library's name, and no tests
                package = Path(message["manifest_path"]).parent.name
                package = "integration" if package == "tests" else package
                if package in packages:
                    programs[package, message["target"]["name"]] = (message["executable"], Path(message["manifest_path"]).parent)
        if made.returncode != 0:
            if not refused:
                sys.exit(made.stderr[-4000:])
            return None, refused
    return programs, set()


def tried(program, folder, words, environment, limit):
    """passed, failed or stuck; ends at the first test that fails."""
    child = subprocess.Popen([program, *words], cwd=folder, env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, start_new_session=True)  # fmt: skip
    begun, outcome = time.monotonic(), None
    os.set_blocking(child.stdout.fileno(), False)
    seen = ""
    while outcome is None:
        try:
            seen += child.stdout.read() or ""
        except TypeError:
            pass
        if re.search(r"^test .*FAILED$|has been running.*\bFAILED", seen, re.M):
            outcome = "failed"
        elif child.poll() is not None:
            outcome = "passed" if child.returncode == 0 else "failed"
        elif time.monotonic() - begun > limit:
            outcome = "stuck"
        else:
            time.sleep(0.05)
    try:
        os.killpg(child.pid, 9)
    except ProcessLookupError:
        pass
    child.wait()
    return outcome, time.monotonic() - begun


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seed", type=int, default=1, help="of the choice; another one begins anew")
    arguments.add_argument("--target", type=Path, required=True)
    arguments.add_argument("--area", action="append")
    arguments.add_argument("--first", type=int, default=1, help="number of the first to try")
    chosen_by = arguments.parse_args()
    root = Path(__file__).resolve().parent.parent
    tree = chosen_by.target / "tree"
    files = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    names = [name for name in files if name and (root / name).is_file()]

    areas = [area for area in AREAS if not chosen_by.area or area[0] in chosen_by.area]
    texts = {path: (root / path).read_text() for area in areas for path in area[3]}
    everything = {path: sites(path, text) for path, text in texts.items()}
    # What the compiler refused before is kept: a run that was stopped goes on where it was.
    refused_file = chosen_by.target / "refused.json"
    refused_keys = {tuple(key) for key in json.loads(refused_file.read_text())} if refused_file.exists() else set()
    while True:
        numbered, number = [], 0
        for name, count, crate, paths in areas:
            of_area = [s for path in paths for s in everything[path] if s.key() not in refused_keys]
            picked = random.Random(chosen_by.seed).sample(of_area, min(count, len(of_area)))
            for site in sorted(picked, key=lambda s: (s.path, s.start, s.end)):
                number += 1
                numbered.append((number, site, name, crate, paths[site.path]))
        new = {name: (root / name).read_bytes() for name in names}
        for path, text in texts.items():
            new[path] = mutated(text, [(n, s) for n, s, *_ in numbered if s.path == path]).encode()
        for crate in {area[2] for area in areas}:
            new[f"{crate}/src/lib.rs"] += SWITCH.encode()
        for name, content in new.items():
            file = tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
                shutil.copymode(root / name, file)
        packages = {crate for *_, crate, _ in numbered}
        packages |= {further[0] for crate in packages for further in FURTHER[crate]}
        programs, refused = build(tree, chosen_by.target / "build", packages)
        if programs:
            break
        before = len(refused_keys)
        for path, line in refused:
            hit = [s for _, s, *_ in numbered if s.path == path and s.line <= line <= s.line + texts[path].encode()[s.start : s.end].count(b"\n")]
            smallest = min(hit, key=lambda s: s.end - s.start, default=None)
            if smallest:
                refused_keys.add(smallest.key())
        print(f"{len(refused)} lines refused by the compiler, {len(refused_keys) - before} sites put aside", flush=True)
        refused_file.write_text(json.dumps(sorted(refused_keys)))
        if len(refused_keys) == before:
            sys.exit(f"the compiler refuses {sorted(refused)}")
    print(f"{number} mutants built", flush=True)

    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHON=str(root / "target/judges/bin/python"))
    environment["CARGO_TARGET_DIR"] = str(chosen_by.target / "build")
    # The stories ask cargo for the programs, which are there.
    environment.setdefault("LIBTORCH", str(root / ".libtorch"))
    # Results stay good as long as nothing changes; a test that was added is asked about all of them.
    state, now = chosen_by.target / "tried.json", hashlib.sha256()
    for name in names:
        now.update(name.encode() + b"\0" + (root / name).read_bytes())
    kept = json.loads(state.read_text()) if state.exists() else {}
    kept = kept["results"] if isinstance(kept, dict) and kept.get("of") == now.hexdigest() else []
    before = {(r["path"], r["line"], r["what"], r["n"]): r for r in kept}
    plans = {}
    for crate in packages & {area[2] for area in areas}:
        plan = [(p, t, "") for p, t in programs if p == crate and t not in PASSED_OVER]
        # The quick ones first, the unit tests of the whole crate after them, the slow ones last.
        rank = {"golden": 0, "loader": 0, "writer": 0, "api": 0, "samples": 0, crate: 1}
        plans[crate] = sorted(plan, key=lambda step: rank.get(step[1], 2)) + FURTHER[crate]
    reached, usual = {}, {}

    def baseline(step):
        """Which mutants a step reaches, and how long it takes when none is on; once a step."""
        if step not in usual:
            package, target, words = step
            log = chosen_by.target / "reached"
            log.unlink(missing_ok=True)
            program, folder = programs[package, target]
            outcome, took = tried(program, folder, [words] if words else [], dict(environment, MUTANTS_REACHED=str(log)), 1800)
            if outcome != "passed":
                sys.exit(f"{step} does not pass without a mutant")
            reached[step] = {int(n) for n in log.read_text().split()} if log.exists() else set()
            usual[step] = took
            print(f"{step}: {took:.0f} s, reaches {len(reached[step])}", flush=True)

    results = []
    for number, site, name, crate, first in numbered[chosen_by.first - 1 :]:
        outcome, by = "survived", ""
        known = before.get((site.path, site.line, site.what, number))
        if known:
            results.append(known)
            continue
        steps = [(crate, crate, first), *plans[crate]]
        for step in steps:
            baseline(step)
            if number not in reached[step]:
                continue
            package, target, words = step
            program, folder = programs[package, target]
            said, took = tried(program, folder, [words] if words else [], dict(environment, MUTANT=str(number)), 20 + 4 * usual[step])
            if said != "passed":
                outcome, by = said, "/".join(filter(None, step))
                break
        results.append({"n": number, "area": name, "path": site.path, "line": site.line, "what": site.what, "outcome": outcome, "by": by})
        print(json.dumps(results[-1]), flush=True)
        state.write_text(json.dumps({"of": now.hexdigest(), "results": results}))
    for r in results:
        if r["outcome"] == "survived":
            print(f"not noticed: {r['path']}:{r['line']}: {r['what']}")
    gone = sum(r["outcome"] != "survived" for r in results)
    print(f"{gone} of {len(results)} mutants noticed")


main()
