"""Sine positions of a map: each place's sines once.

The pixels of a row share their y, those of a column their x: of 13,400 pixels a few
hundred places differ, whatever is padding.
"""

import numpy as np

from ..backend import twin
from ..ops.position import pixel_places, place_sines, sine_position
from .corner_reads import as_items


@twin(sine_position)
def fast_sine_position(mask, C, dtype='float32'):
    """See `ops.position`."""
    if not mask.size:
        return sine_position.plain(mask, C, dtype)
    pos = np.empty((*mask.shape, 2, C // 2), dtype)
    for i, places in enumerate(pixel_places(mask, dtype)):
        values, which = np.unique(places, return_inverse=True)
        sines = place_sines(values, C // 2)
        as_items(pos)[..., i, :] = as_items(sines)[which.reshape(mask.shape)]
    return pos.reshape(*mask.shape, C)
