"""Where the files of options lie: qexp's own, and before them those of the user's folder."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
# In a clone conf/ lies beside the package, and in an installed wheel inside it.
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())


def conf_folders() -> list[Path]:
    """The folders in which options are looked up, in this order: `conf` in the current folder if there is one, CONF.

    Hydra looks them up there too (hydra_plugins/qexp_own_folder.py).
    """
    own = Path.cwd() / "conf"
    return [own, CONF] if own.is_dir() and not own.samefile(CONF) else [CONF]


def conf_file(place: str) -> Path:
    """Find a file of options.

    Args:
        place: Its place in a folder of options, such as `engine/eager.yaml`.

    Raises:
        FileNotFoundError: No folder has it.
    """
    for folder in conf_folders():
        if (folder / place).is_file():
            return folder / place
    raise FileNotFoundError(f"There is no {place} in {' or '.join(map(str, conf_folders()))}.")


def choices(group: str) -> list[str]:
    """The names of a group's files, such as those of `engine`, without those that others are made from."""
    return sorted({file.stem for folder in conf_folders() for file in (folder / group).glob("[!_]*.yaml")})
