"""A lock that another process holds."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(imports: str, lock: str, place: Path) -> Iterator[None]:
    """Let another process hold a lock while the block runs, then kill it.

    Args:
        imports: statement that `lock` needs.
        lock: expression of the context; `place` is a Path there.
        place: what the lock is of.
    """
    code = (
        f"import sys\nfrom pathlib import Path\n{imports}\nplace = Path(sys.argv[1])\n"
        f"with {lock}:\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.kill()
