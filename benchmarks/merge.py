"""python merge.py OTHER.json...: adds the rows of other runs to results/cpu-zen5-2cores.json (a later row of the same key replaces)."""

import json
import sys
from pathlib import Path

main = Path(__file__).resolve().parent / "results" / "cpu-zen5-2cores.json"
db = json.loads(main.read_text())
key = lambda r: (r["workload"], r["peer"], r["threads"], r["malloc"])
for name in sys.argv[1:]:
    other = json.loads(Path(name).read_text())
    new = {key(r) for r in other["results"]}
    db["results"] = [r for r in db["results"] if key(r) not in new] + other["results"]
    db["peers"].update(other["peers"])
main.write_text(json.dumps(db, indent=0))
