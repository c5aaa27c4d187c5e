"""What every command does around its work: log lines, errors for people, exit status."""

import logging
import os
import sys
from collections.abc import Callable

from ssmast.settings import UsageError


def run_command(main: Callable[[list[str]], int], argv: list[str], *, name: str) -> int:
    """Run `main(argv)` and turn its errors into one sentence and an exit status.

    Returns:
        0 if it worked; 2 for a wrong command line; 1 for wrong input; 130 / 143 after Ctrl-C /
        SIGTERM. Errors of ours (anything else) keep their traceback.
    """
    logging.basicConfig(
        level=logging.INFO if _is_main_process() else logging.ERROR,
        format="%(message)s",
        stream=sys.stderr,
    )
    # Two lines that every launch prints and nobody can act on.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        return main(argv)
    except UsageError as error:
        return _say(name, error, status=2)
    except (ValueError, OSError) as error:
        return _say(name, error, status=1)
    except KeyboardInterrupt:
        return _say(name, "stopped", status=130)
    except Exception as error:
        signal_number = getattr(error, "signal_number", 0)
        if signal_number:
            return _say(name, error, status=128 + signal_number)
        raise


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(name: str, message: object, *, status: int) -> int:
    sys.stderr.write(f"{name}: {message}\n")
    return status
