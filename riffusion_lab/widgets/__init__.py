"""The parts of a notebook that need a browser's help. Each is one Python file and one JavaScript file."""

from .recorder import Recorder

__all__ = ["Recorder"]
