"""What mkdocs asks of the project itself: the version, which stands below every page."""

import runpy
from pathlib import Path


def on_config(config):
    """The configuration of the site with the version of the package."""
    version = runpy.run_path(Path(__file__).parents[1] / "ssmast" / "version.py")["__version__"]
    config.copyright = f"ssmast {version}, Apache-2.0"
    return config
