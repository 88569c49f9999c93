"""One part in its process: `python -m benchmarks.gpu_parts NAME FOLDER OPTIONS`, the options as JSON."""

import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_parts.report import NOT_MEASURED, NotMeasuredError, Options, Report


def main(argv: Sequence[str]) -> int:
    """Run a part; return its exit code."""
    name, folder, options = argv
    report = Report(Path(folder), name)
    try:
        # verify-20000 is verify with more steps
        module = importlib.import_module(f"benchmarks.gpu_parts.{name.partition('-')[0]}")
        module.run(report, Options(**json.loads(options)))
    except NotMeasuredError as reason:
        report.not_measured(str(reason))
        return NOT_MEASURED
    except Exception as error:
        traceback.print_exc()
        report.failed(f"{type(error).__name__}: {error}")
    return int(bool(report.failures))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
