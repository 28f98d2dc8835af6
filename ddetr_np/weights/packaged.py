"""The detectors that come with the package, known by their names.

`ddetr_np/pretrained/` holds NAME.safetensors, NAME.md (the card: data, licence and
figures) and NAME.toml (the settings it was trained with).
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / 'pretrained'


def names():
    """Return the names that `load_model` knows, sorted.

    Returns
    -------
    list of str
        Those of the weights files in `pretrained/`, without their suffix.
    """
    return sorted(path.stem for path in FOLDER.glob('*.safetensors'))


def find(name):
    """Return the Path of a packaged detector's weights, or None if there is none.

    A name goes before a file or folder that is called the same: that is './NAME'.

    Parameters
    ----------
    name : str or Path
        Without suffix or folder.

    Returns
    -------
    Path or None
        Absolute.
    """
    return FOLDER / f'{name}.safetensors' if str(name) in names() else None
