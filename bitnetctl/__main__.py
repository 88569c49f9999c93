"""The command `bitnetctl`, also as `python -m bitnetctl`."""

import sys

from bitnetctl.errors import ExitCode
from bitnetctl.signals import StopRequest


def main() -> None:
    """Run the command line; stop signals are handled from before its modules are imported."""
    stop = StopRequest().begin()
    try:
        from bitnetctl import cli
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(ExitCode.INTERRUPTED)
    cli.main(stop)


if __name__ == "__main__":
    main()
