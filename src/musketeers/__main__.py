"""The entry point: runs the command line and turns every foreseen failure into one line."""

import errno
import os
import sys
from typing import NoReturn

from musketeers.errors import MusketeersError

_INTERRUPTED = 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Run `musketeers` with this process's arguments.

    Ends with exit code 0, 1 (a foreseen failure, one line on stderr), 2 (wrong usage) or
    130 (interrupted).
    """
    try:
        _run()
    except MusketeersError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # the reader is gone; what is still buffered must not fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _fail(f"{error.strerror}; free some space and try again", 1)


def _run() -> None:
    # typer takes a while to load: an interrupt during that is answered in one line, too
    from musketeers.cli import app

    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            raise KeyboardInterrupt from None
        raise
    finally:
        # a reader that went away shows here, not in the interpreter's last words
        sys.stdout.flush()


def _fail(message: str, code: int) -> NoReturn:
    print(f"musketeers: {message}", file=sys.stderr)  # noqa: T201 -- the one place that may
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
