"""Where weights come from: those in the package, a local folder, or a repository on the Hugging Face Hub."""

from pathlib import Path

from mavlite.checkpoint import SHIPPED, refuse_code
from mavlite.errors import MavliteError


def weights_folder(source):
    """The local folder of a weights source; a Hub id is downloaded (weights and JSON only, never code).

    Raises MavliteError for a folder or a repository that holds code as well, or cannot be had.
    """
    if source is None:
        return SHIPPED
    folder = Path(source)
    if folder.is_dir():
        refuse_code(folder, folder.iterdir())
        return folder
    if str(source).count("/") != 1 or folder.is_absolute() or str(source).startswith("."):
        raise MavliteError(f"{source}: no such folder of weights")
    import huggingface_hub
    try:
        about = huggingface_hub.model_info(str(source), timeout=1)       # tried once: nobody waits offline
        files = [file.rfilename for file in about.siblings or ()]
    except Exception:                                        # then what was downloaded before will do
        files = []
    refuse_code(source, files)
    try:
        return Path(huggingface_hub.snapshot_download(
            str(source), allow_patterns=["*/model.safetensors", "*/config.json"], etag_timeout=5))
    except Exception as error:                               # the Hub client raises many kinds
        raise MavliteError(f"{source}: neither a folder nor a reachable Hub repository "
                           f"({' '.join(str(error).split())[:100]})") from None
