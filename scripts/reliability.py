"""Puts new rows into docs/reliability.jsonl, in place of those of the same stories, and makes the table of them."""

import json
import sys
from pathlib import Path

docs = Path(__file__).resolve().parent.parent / "docs"


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


new = read(sys.argv[1])
told = {row["story"] for row in new}
rows = new + [row for row in read(docs / "reliability.jsonl") if row["story"] not in told]
rows.sort(key=lambda row: row["fault"].lower())
keys = ("story", "fault", "times", "outcome", "loss")
(docs / "reliability.jsonl").write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))
table = ["| what is done to a run | times | what it does | what is lost |", "|---|---|---|---|"]
table += [f"| {r['fault']} | {r['times']} | {r['outcome']} | {r['loss']} |" for r in rows]
page = docs / "reliability.md"
begin, end = "<!-- table -->\n", "<!-- end of table -->"
head, rest = page.read_text().split(begin)
page.write_text(head + begin + "\n".join(table) + "\n" + end + rest.split(end)[1])
