"""Makes Hydra look for qexp's options in `conf` in the current folder first, whatever composes the config.

Hydra asks this plugin about the search path of every program, and it leaves those of other programs as they are.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from qexp.places import CONF, conf_folders


class OwnFolder(SearchPathPlugin):
    """Puts the folders that come before qexp's own into the search path before it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = next((element.path for element in search_path.get_path() if element.provider == "main"), None)
        if main is not None and main.removeprefix("file://") == str(CONF):
            for folder in conf_folders():
                if folder != CONF:
                    search_path.prepend("own folder", f"file://{folder}", anchor="main")
