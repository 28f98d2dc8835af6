"""Figure 6 with sliders, for notebooks."""

import functools

from matplotlib.figure import Figure
from PIL import Image

from ..analysis.look import decoder_sampling, encoder_sampling, middle_token
from ..analysis.reads import decoder_reads, encoder_reads
from ..errors import InputError
from .sampling import draw_sampling, pixels_of


def explore_sampling(seen, threshold=0.3):
    """Return sliders over detections, layers, heads, levels and zoom, for Jupyter.

    On the left what the encoder's token at the middle of the detection reads, on the
    right what the decoder's query reads. Needs the extra `notebook`.

    Parameters
    ----------
    seen : Look
        The picture and the pass it made.
    threshold : float
        Detections that score less are left out; the best is always there.

    Returns
    -------
    ipywidgets.Widget

    Raises
    ------
    InputError
        ipywidgets is not installed.
    """
    try:
        import ipywidgets as widgets
        from IPython.display import display
    except ImportError as error:
        raise InputError(
            "the sliders need ipywidgets: pip install 'ddetr-np[notebook]'"
        ) from error

    encoder = functools.lru_cache(2)(functools.partial(encoder_sampling, seen))
    decoder = functools.lru_cache(8)(functools.partial(decoder_sampling, seen))
    n = max(1, int((seen.best.scores >= threshold).sum()))
    M, L = seen.model.config.M, seen.model.config.L

    def show(detection, encoder_layer, decoder_layer, head, level, zoom):
        pair = (
            encoder_reads(
                seen, middle_token(seen, detection), encoder_layer,
                encoder(encoder_layer),
            ),
            decoder_reads(
                seen, int(seen.best.queries[detection]), decoder_layer,
                int(seen.best.labels[detection]), decoder(decoder_layer),
            ),
        )  # fmt: skip
        figure = Figure(figsize=(14, 6), layout='constrained')
        for axes, reads in zip(figure.subplots(1, 2), pair):
            draw_sampling(reads, axes, head, level, zoom)
        # a notebook shows a figure only if it has been told to, a picture always
        display(Image.fromarray(pixels_of(figure)))

    def slider(n, value=0):
        return widgets.IntSlider(value, 0, n - 1, continuous_update=False)

    def choice(n):
        each = [(str(i), i) for i in range(n)]
        return widgets.Dropdown(options=[('all', None), *each])

    return widgets.interactive(
        show,
        detection=slider(n),
        encoder_layer=slider(len(seen.cache.encoder), len(seen.cache.encoder) - 1),
        decoder_layer=slider(len(seen.out.logits), len(seen.out.logits) - 1),
        head=choice(M),
        level=choice(L),
        zoom=widgets.FloatSlider(1, min=1, max=8, step=0.5, continuous_update=False),
    )
