"""How riffling is made: compose, render, caption, train, judge. `python -m riffusion_lab.training --help`."""
