"""Links to the FFmpeg inside PyAV's wheel, by the names that torchcodec looks for.

    python -m tests.ffmpeg_of_pyav FOLDER      # then LD_LIBRARY_PATH=FOLDER

So what needs FFmpeg can be tested where the system has none. The wheel's files are called
libavcodec-5e6b81c2.so.62.28.102 and ask for one another so; torchcodec asks for libavcodec.so.62.
"""

import importlib.util
import re
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Make the folder of links."""
    spec = importlib.util.find_spec("av")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    for file in (Path(spec.origin).parent.parent / "av.libs").iterdir():
        names = {file.name}
        if parts := re.fullmatch(r"(libav\w+|libsw\w+)-\w+(\.so\.\d+)[\d.]*", file.name):
            names.add(parts[1] + parts[2])
        for name in names:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
