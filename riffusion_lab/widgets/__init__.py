"""The parts of a notebook that answer: panels of plain ipywidgets, and widgets with a JavaScript file of their own."""

from .live import Live
from .mask_painter import MaskPainter
from .player import Player
from .recorder import Recorder
from .session import Session, replay_session
from .studio import Studio

__all__ = ["Live", "MaskPainter", "Player", "Recorder", "Session", "Studio", "replay_session"]
