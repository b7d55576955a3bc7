"""mavlite: Make-A-Video (arXiv 2209.14792) on Moving MNIST, the whole text-to-video cascade."""

from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.video import Video

__version__ = "0.1.0"
__all__ = ["MakeAVideo", "MavliteError", "Video"]
