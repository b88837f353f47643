"""The door of the command `intone` and of `python -m intone`: help at once, everything else through cli.py."""

import signal
import sys

from intone.errors import EXIT_STOPPED
from intone.verbs import static_answer


def entry() -> None:
    """Runs the command line of this process and exits; SIGTERM ends it as Ctrl-C does."""
    static = static_answer(sys.argv[1:])
    if static is not None:
        print(static)
        return
    try:
        signal.signal(signal.SIGTERM, _stop)
        from intone.cli import main  # here: it takes longer to import than the help to print

        code = main()
    except KeyboardInterrupt:  # before or after main, which ends its own interrupts with words
        code = EXIT_STOPPED
    sys.exit(code)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()
