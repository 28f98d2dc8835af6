"""Scenes drawn by chance: a small detection benchmark that needs no download.

`figures` are the classes, `looks` their colours and textures, `ground` what is around
them, `draw` puts a scene together, `dataset` makes data sets of them.
"""

from .dataset import Scenes, write_scenes
from .draw import Scene, draw_scene
from .figures import NAMES

__all__ = ['NAMES', 'Scene', 'Scenes', 'draw_scene', 'write_scenes']
