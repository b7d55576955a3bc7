"""How every notebook opens: title, a badge once the repository has an address, and the setup cell."""

import re
import tomllib
from pathlib import Path

from mavlite.errors import MavliteError

SETUP = '''\
PRETRAINED = True    # load the shipped weights; False: train here what this notebook uses
PRESET = "cpu"       # "smoke": all in seconds, nothing to look at; "cpu": two CPU cores; "t4": one CUDA GPU

import importlib.util
import os
import subprocess
import sys

ADDRESS = "{address}"
if importlib.util.find_spec("mavlite") is None:              # as on Colab; after `make env` it is there
    if not ADDRESS:
        raise ImportError("mavlite is not installed here: run `make env` in its repository, and start "
                          "Jupyter from there with `.venv/bin/jupyter lab notebooks`")
    if not os.path.isdir("course"):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", ADDRESS, "course"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "course"], check=True)
    sys.path.insert(0, os.path.abspath("course"))

from mavlite.teaching import notebook

lesson = notebook.start(preset=PRESET, pretrained=PRETRAINED)'''

BADGE = "[![Open in Colab]"


def address(repository):
    """The published address, `project.urls` / `Repository` of pyproject.toml; "" while there is none."""
    text = (Path(repository) / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"].get("urls", {}).get("Repository", "").removesuffix("/")


def setup_cell(published):
    """The text of the setup cell, the same in every notebook."""
    return SETUP.replace("{address}", published)


def badge(published, path):
    """Markdown for the badge of the notebook at `path` in the repository; "" where Colab cannot open it.

    Colab opens notebooks from GitHub only, so any other address gives none.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?", published)
    if match is None:
        return ""
    return (f"{BADGE}(https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/github/{match[1]}/blob/main/{path})")


def open_with(cells, published, path):
    """Put the badge, or none, under the title and the address into the setup cell of a notebook's cells.

    cells: as nbformat has them; changed in place. Raises MavliteError where the two are not to be found.
    """
    setup = next((cell for cell in cells if cell["cell_type"] == "code"), None)
    if not cells or not cells[0]["source"].startswith("# ") or setup is None:
        raise MavliteError(f"{path}: does not open with a title and a setup cell")
    lines = [line for line in cells[0]["source"].splitlines() if not line.startswith(BADGE)]
    title, rest = lines[0], "\n".join(lines[1:]).strip()
    cells[0]["source"] = "\n\n".join(part for part in (title, badge(published, path), rest) if part)
    setup["source"] = setup_cell(published)
