"""``palate init``: a feature repository like the project's own, for the user's data."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from encoder.errors import DataFault
from materialize.config import CONFIG_FILE

__all__ = ["init_repository", "shipped_datasets", "template_folder"]

_NOT_COPIED = shutil.ignore_patterns("data", "__pycache__")


def template_folder() -> Path:
    """Return the folder of the template: inside the wheel, else ``feature_repo`` of the checkout.

    Raises
    ------
    FileNotFoundError
        Neither is there: the installation is broken.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "templates" / "feature_repo", here.parent / "feature_repo"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise FileNotFoundError(f"No template of a feature repository beside {here}; reinstall palate.")


def shipped_datasets() -> list[str]:
    """Return the names of the ``dataset.yaml`` files that come with Palate."""
    return sorted(p.stem for p in (template_folder() / "datasets").glob("*.yaml"))


def init_repository(target: Path, dataset: str = "my_data") -> list[Path]:
    """Write a feature repository; nothing that exists is overwritten.

    Parameters
    ----------
    target : Path
        Folder to make.
    dataset : str
        Shipped data set that ``palate.yaml`` names: ``my_data`` is a template to fill in.

    Returns
    -------
    list of Path
        Files written, ordered by name.

    Raises
    ------
    DataFault
        The folder is not empty, or no such data set is shipped.
    """
    if dataset not in shipped_datasets():
        raise DataFault(f"Unknown data set {dataset!r}. Shipped: {', '.join(shipped_datasets())}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "is not empty" if target.is_dir() else "is a file"
        raise DataFault(f"{target} {what}. Name a new folder, or empty this one first.")
    shutil.copytree(template_folder(), target, ignore=_NOT_COPIED, dirs_exist_ok=True)
    config = target / CONFIG_FILE
    text = config.read_text(encoding="utf-8")
    shipped = yaml.safe_load(text)["dataset"]
    config.write_text(text.replace(shipped, f"datasets/{dataset}.yaml"), encoding="utf-8")
    return sorted(p for p in target.rglob("*") if p.is_file())
