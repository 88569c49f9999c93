"""How often verdicts and effects err, against what they promise, and what they find; exit code 1 for a broken promise.

    python -m benchmarks.calibration [--quick] [--part rates,means] [--json FILE]

Every part is a module with `tables(quick=...)`. Seeds are fixed, so the same command prints the same tables.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibration import compared, effects, factors, judge, means, metrics, paired, plans, rates, shapes

PARTS = {
    "rates": rates,
    "plans": plans,
    "means": means,
    "paired": paired,
    "compared": compared,
    "judge": judge,
    "shapes": shapes,
    "effects": effects,
    "factors": factors,
    "metrics": metrics,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print their tables and the minutes they took; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs")
    parser.add_argument("--part", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables to a file, too")
    chosen = parser.parse_args(arguments)
    parts = chosen.part.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--part: unknown {', '.join(unknown)}; known: {', '.join(PARTS)}")

    document: dict[str, Any] = {"quick": chosen.quick, "parts": {}}
    faults: list[str] = []
    for part in parts:
        start = time.perf_counter()
        tables = PARTS[part].tables(quick=chosen.quick)
        minutes = (time.perf_counter() - start) / 60
        print(f"# {part}\n\n`python -m benchmarks.calibration --part {part}{' --quick' * chosen.quick}`\n")
        for table in tables:
            print(table.markdown())
            faults += [f"{part}: {table.title}: {fault}" for fault in table.faults]
        print(f"{part}: {minutes:.2f} minutes\n", flush=True)
        document["parts"][part] = {"minutes": minutes, "tables": [vars(table) for table in tables]}
    document["faults"] = faults
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for fault in faults:
        print(f"broken promise: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
