"""The command `bitnetctl`, also as `python -m bitnetctl`.

Python exits with 1 after an uncaught error, and here 1 is a verdict. So what may fail is imported inside of `main`.
"""

import sys

# those of bitnetctl.errors.ExitCode, which is not imported yet
_USAGE, _INTERNAL, _INTERRUPTED = 2, 3, 130


def main() -> None:
    """Run the command line; stop signals are handled from before its modules are imported."""
    try:
        from bitnetctl.signals import StopRequest

        stop = StopRequest().begin()
        from bitnetctl.streams import prepare_streams

        prepare_streams()
        from bitnetctl import cli
    except KeyboardInterrupt:
        _leave("interrupted", _INTERRUPTED)
    except MemoryError:
        _leave("cannot start: out of memory", _USAGE)
    except (ImportError, SyntaxError, OSError) as error:
        _leave(f"cannot start: {_one_line(error)}; is the installation complete? pip install bitnetctl again", _USAGE)
    except BaseException as error:
        _leave(f"cannot start: {_one_line(error)}", _INTERNAL)
    else:
        try:
            cli.main(stop)
        except KeyboardInterrupt:
            # in the moment between a command and the end of the process
            _leave("interrupted", _INTERRUPTED)
        except SystemExit:
            raise
        except BaseException as error:
            _leave(f"internal error: {_one_line(error)}", _INTERNAL)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _leave(message: str, code: int) -> None:
    try:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    finally:
        sys.exit(code)


if __name__ == "__main__":
    main()
