"""What pyproject.toml cannot say: the README as a package index shows it."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
# Files of the repository, which has no address of its own: their names stay, and pictures go.
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", readme)
readme = re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", r"\1 (`\2`)", readme)
setup(long_description=readme, long_description_content_type="text/markdown")
