"""Figure 6 over the layers: how refinement moves the points."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ..errors import InputError
from .sampling import COLOURS, GREEN, chosen, draw_sampling, pixels_of, window_of

SECONDS = 1.0  # of a layer in an animation


def save_animation(path, frames, head=None, level=None, zoom=1, seconds=SECONDS):
    """Write an animation over layers: a GIF, or an MP4 by the program ffmpeg.

    Parameters
    ----------
    path : path
        Its ending, .gif or .mp4, says in which format.
    frames : list of Reads
        Of `all_layers`. All are seen in one window and one scale of colours.
    head, level, zoom
        As for `draw_sampling`.
    seconds : float
        How long each layer is seen.

    Raises
    ------
    InputError
        The ending is another, or there is no ffmpeg.
    """
    path = Path(path)
    if path.suffix not in ('.gif', '.mp4'):
        raise InputError(f'{path} ends in {path.suffix!r}; expected .gif or .mp4')
    if path.suffix == '.mp4' and not has_ffmpeg():
        raise InputError(
            f'{path.name} needs the program ffmpeg, which is not on the path; install '
            'it, or choose .gif'
        )
    window = window_of(frames, zoom)
    most = max(chosen(f, head, level)[1].max() for f in frames)
    images = []
    for reads in frames:
        axes = draw_sampling(reads, None, head, level, window, most)
        images.append(pixels_of(axes.figure))
    if path.suffix == '.mp4':
        _write_mp4(path, images, seconds)
        return
    palette = _palette(images[-1])
    first, *others = [Image.fromarray(i).quantize(palette=palette) for i in images]
    first.save(
        path, save_all=True, append_images=others, duration=round(1000 * seconds),
        loop=0,
    )  # fmt: skip


def _palette(image):
    """A GIF's 256 colours, the weights' among them: a picture's own would lack some."""
    own = Image.fromarray(image).quantize(180).convert('RGB').getcolors(180)
    fixed = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 72))[:, :3]
    fixed = [*fixed, matplotlib.colors.to_rgb(GREEN), (0, 0, 0), (1, 1, 1)]
    colours = [colour for _, colour in own]
    colours += (255 * np.array(fixed)).round().astype(int).tolist()
    palette = Image.new('P', (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    return palette


def has_ffmpeg():
    """Return whether MP4 can be written.

    Returns
    -------
    bool
        Whether the program ffmpeg is on the path.
    """
    return shutil.which('ffmpeg') is not None


def _write_mp4(path, images, seconds):
    import subprocess

    H, W = (n - n % 2 for n in images[0].shape[:2])  # the codec takes even sides only
    command = [
        'ffmpeg', '-loglevel', 'error', '-y', '-f', 'rawvideo', '-pix_fmt', 'rgb24',
        '-s', f'{W}x{H}', '-r', f'{1 / seconds:g}', '-i', '-', '-r', '25',
        '-pix_fmt', 'yuv420p', str(path),
    ]  # fmt: skip
    pixels = b''.join(image[:H, :W].tobytes() for image in images)
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors='replace').strip()
        raise InputError(f'ffmpeg did not write {path.name}: {reason}')
