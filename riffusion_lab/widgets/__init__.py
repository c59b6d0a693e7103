"""Interactive parts of a notebook: panels of plain ipywidgets, and widgets with a JavaScript file of their own."""

from ..deprecation import moved
from .live import Live
from .mask_painter import MaskPainter
from .panel import Panel
from .player import Player
from .recorder import Recorder
from .studio import Studio

__all__ = ["Live", "MaskPainter", "Panel", "Player", "Recorder", "Studio"]

__getattr__ = moved(__name__, {"Session": "live.Session", "replay_session": "live.replay_session"})
