"""Writing files so that none is ever seen half-written."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to; it takes the place of `path` when the block succeeds.

    Parameters
    ----------
    path : path
        Its folder must exist. What stood there before stays if the block raises.

    Yields
    ------
    Path
        In the same folder, with the same ending; deleted if the block raises.
    """
    path = Path(path)
    # beside the target, as a rename does not cross disks; the ending names the format
    part = path.with_name(f'.{path.stem}-{os.getpid()}.part{path.suffix}')
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) == str(part):
            error.filename = str(path)  # whoever reads the message knows this one
        raise
    finally:
        part.unlink(missing_ok=True)
