"""What is common to all commands: logging, errors in one sentence, exit status."""

import io
import logging
import multiprocessing
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ssmast.files import NO_ROOM
from ssmast.settings import UsageError

_log = logging.getLogger(__name__)


class StoppedError(BaseException):
    """A signal asked the command to stop. Like KeyboardInterrupt, it is no Exception."""

    def __init__(self, signal_number: int, outcome: str = "") -> None:
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}{'; ' if outcome else ''}{outcome}")


def stop_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP, as of a closed terminal, unless `nohup` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def may_start(workers: int) -> int:
    """How many worker processes may be started: none by a daemonic one, as in a Pool."""
    if workers and multiprocessing.current_process().daemon:
        _log.warning("a daemonic process may start no others: its work is done in one process")
        return 0
    return workers


_TRAINING = ("ssmast pretrain", "ssmast finetune")


def run_command(main: Callable[[list[str]], int], argv: list[str], *, name: str) -> int:
    """Run `main(argv)` and turn its errors into one sentence and an exit status.

    Returns:
        0 if it worked; 2 for a wrong command line; 1 for wrong input; 130, 143, 129 after Ctrl-C,
        SIGTERM, SIGHUP; 141 if the output pipe was closed. Any other exception is a bug and keeps
        its traceback.
    """
    _repair_streams()
    logging.basicConfig(
        level=logging.INFO if _is_main_process() else logging.ERROR,
        format="%(message)s",
        stream=sys.stderr,
    )
    # Messages of every launch that need no action.
    for noisy in ("torch.distributed.elastic", "faiss", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        os.getcwd()
    except FileNotFoundError:  # oneMKL, for one, would end the process without a clear message
        return _say(name, "the current folder was deleted; change to another one", status=1)
    try:
        with _signals_raise():
            status = main(argv)
            sys.stdout.flush()
            return status
    except UsageError as error:
        return _say(name, error, status=2)
    except BrokenPipeError as error:
        return 128 + signal.SIGPIPE if _pipe_is_closed() else _say(name, error, status=1)
    except OSError as error:
        return _say(name, _about_room(error) if error.errno in NO_ROOM else error, status=1)
    except ValueError as error:
        return _say(name, error, status=1)
    except MemoryError as error:
        return _say(name, _about_main_memory(name, str(error)), status=1)
    except RuntimeError as error:
        # By name: they are torch's, which is not imported here.
        is_of_gpu = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
        said = str(error)
        if said.startswith("DataLoader worker (pid"):
            return _say(name, f"{said.rstrip('. ')}: is memory short? lower workers=", status=1)
        if "DefaultCPUAllocator: " in said:
            return _say(name, _about_main_memory(name, said), status=1)
        if not is_of_gpu or "out of memory" not in said:
            raise
        return _say(name, _about_memory(said, key=_size_key(name)), status=1)
    except KeyboardInterrupt:
        return _leave(_say(name, "stopped by SIGINT", status=130))
    except StoppedError as error:
        return _leave(_say(name, error, status=128 + error.signal_number))


def _about_memory(said: str, *, key: str) -> str:
    """What PyTorch says of a GPU without memory, without its advice on PyTorch's own settings."""
    found = re.search(r"allocate ([\d.]+ .iB)\..* of which ([\d.]+ .iB) is free", said)
    about = f" ({found[1]} wanted, {found[2]} free)" if found else ""
    return f"CUDA out of memory{about}; lower {key}=, or end what else runs on that GPU"


def _about_main_memory(name: str, said: str) -> str:
    """The same of a computer's memory: what torch or numpy wanted, where they say it."""
    found = re.search(r"allocate (\d+ bytes|[\d.]+ .iB)", said)
    about = f" ({found[1]} wanted at once)" if found else ""
    return f"out of memory{about}; lower {_size_key(name)}= or workers=, or end other programs"


def _size_key(name: str) -> str:
    return "batch_size" if name in _TRAINING else "batch_seconds"


def _about_room(error: OSError) -> str:
    """What is to be done where a disk is full; Python names no file that was open before."""
    what = error.filename or "a file, or what is printed,"
    return f"{what} cannot be written: {error.strerror}; make room and start again"


def _repair_streams() -> None:
    """Make every stream writable: results of hours must not be lost by printing them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by `>&-`; the next opened file would get its number
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that its encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")


def _pipe_is_closed() -> bool:
    """Whether the reader of the output has closed the pipe, as `| head` does."""
    try:
        number = sys.stdout.fileno()
    except OSError:
        return False  # a stream without a file, as in tests
    poll = select.poll()
    poll.register(number, 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # flushing must not fail again
    return True


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the command as Ctrl-C does: through every `finally`."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(status: int) -> int:
    """The status; but exit at once if a thread does not end, since Python would wait for it.

    A mount that has gone away can block a read for ever.
    """
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(timeout=1.0)
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                os._exit(status)
    return status


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(name: str, message: object, *, status: int) -> int:
    text = str(message)
    if "Original Traceback (most recent call last):" in text:
        # Raised in a DataLoader's worker: the message is the last line, after the exception's name.
        text = text.strip().splitlines()[-1].partition(": ")[2]
    sys.stderr.write(f"{name}: {text}\n")
    return status
