"""mavlite: Make-A-Video (arXiv 2209.14792) on Moving MNIST, the whole text-to-video cascade."""

__version__ = "0.1.0"
__all__ = ["MakeAVideo", "MavliteError", "Video"]


def __getattr__(name):
    """Import on first use: `mavlite --help` need not wait for torch and open_clip."""
    if name == "MakeAVideo":
        from mavlite.pipeline import MakeAVideo
        return MakeAVideo
    if name == "Video":
        from mavlite.video import Video
        return Video
    if name == "MavliteError":
        from mavlite.errors import MavliteError
        return MavliteError
    raise AttributeError(f"module 'mavlite' has no attribute {name!r}")
