"""What attention costs (A.1, Eq. 1) and where a model's cost lies, as pictures."""

import numpy as np
from matplotlib.figure import Figure

from ..analysis import formulas as f
from ..config import VARIANTS
from .detections import COLOURS

ORANGE, SKY, GREEN, _, BLUE, VERMILION, PURPLE = (
    tuple(v / 255 for v in colour) for colour in COLOURS
)
GREY = 0.45, 0.45, 0.45
PART_COLOURS = BLUE, SKY, ORANGE, PURPLE, GREY, GREEN, VERMILION
TOKENS = np.unique(np.geomspace(50, 50_000, 200).astype(int))
QUERIES = np.unique(np.geomspace(10, 50_000, 200).astype(int))
KEYS = np.arange(1, 17)


def draw_attention(config, H, W):
    """Return how attention's cost grows with tokens, queries and keys.

    All six plots show multiply-accumulates of one layer's attention. Where W'_m is
    cheaper before sampling and where after, A.1's min(HW C², N_q L K C²), is marked.

    Parameters
    ----------
    config : Config
        Its C, M, L, K, Nq and dilation are used.
    H, W : int
        Pixels of the picture whose number of tokens S is held or marked.

    Returns
    -------
    matplotlib.figure.Figure
    """
    S = sum(h * w for h, w in f.level_shapes(config, H, W))
    figure = Figure(figsize=(15, 9), layout='constrained')
    plots = figure.subplots(2, 3)
    _encoder_by_tokens(plots[0, 0], config, S)
    _cross_by_tokens(plots[0, 1], config, S)
    _cross_by_queries(plots[0, 2], config, S)
    _encoder_by_keys(plots[1, 0], config)
    _cross_by_keys(plots[1, 1], config, S)
    _cheaper(plots[1, 2], config, S)
    for axes in plots.flat:
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(fontsize=8.5, framealpha=0.9)
    figure.suptitle(
        f'Attention of one layer: C = {config.C}, M = {config.M}, K = {config.K}, '
        f'L = {config.L}, $N_q$ = {config.Nq}; {H} × {W} pixels are S = {S:,} tokens'
    )
    return figure


def _sizes(config):
    return config.C, config.M, config.K, config.L


def _mark(axes, x, text):
    axes.axvline(x, color=GREY, linestyle=':', linewidth=1.2)
    axes.annotate(
        f'{text} ', (x, 0.015), xycoords=('data', 'axes fraction'), rotation=90,
        ha='right', va='bottom', fontsize=8.5, color='black',
        bbox={'facecolor': 'white', 'alpha': 0.8, 'linewidth': 0, 'pad': 0.5},
    )  # fmt: skip


def _encoder_by_tokens(axes, config, S):
    C, M, K, L = _sizes(config)
    full = [f.detr_encoder(n, C) / 1e9 for n in TOKENS]
    deform = [f.deform_attn(n, n, C, M, K, L) / 1e9 for n in TOKENS]
    axes.loglog(TOKENS, full, color=VERMILION, label='Eq. 1: 4HWC² + 2H²W²C')
    axes.loglog(TOKENS, deform, color=BLUE, label='deformable (A.1)')
    _mark(axes, S, f'S = {S:,}')
    times = f.detr_encoder(S, C) / f.deform_attn(S, S, C, M, K, L)
    axes.set(
        title=f'encoder: Eq. 1 costs {times:.1f} times as much at S',
        xlabel='tokens HW', ylabel='G multiply-accumulates',
    )  # fmt: skip


def _cross(config, Nq, S, K):
    """The decoder's cross-attention in its four forms, in 10⁹."""
    C, M, _, L = _sizes(config)
    rest = f.output_product(Nq, C) + f.offsets_and_weights(Nq, C, M, K, L)
    rest += f.sampling(Nq, C, K, L)
    forms = (
        f.attention(Nq, S, C),
        rest + f.value_before(S, C),
        rest + f.value_after(Nq, C, K, L),
        rest + f.value_last(Nq, C, M, K, L),
    )
    return [macs / 1e9 for macs in forms]


FORMS = (
    ('Eq. 1', VERMILION, '-'),
    ("W' before sampling (as released)", BLUE, '-'),
    ("W' after sampling (A.1)", GREEN, '-'),
    ("W' after sampling and summing", GREEN, '--'),
)


def _plot_forms(plot, x, rows):
    for (label, colour, line), y in zip(FORMS, zip(*rows)):
        plot(x, y, line, color=colour, label=label)


def _cross_by_tokens(axes, config, S):
    Nq, K, L = config.Nq, config.K, config.L
    _plot_forms(axes.loglog, TOKENS, [_cross(config, Nq, n, K) for n in TOKENS])
    _mark(axes, S, f'S = {S:,}')
    at = f.crossing(Nq, K, L)
    _mark(axes, at, f'$N_q$LK = {at:,}')
    axes.set(
        title=f'cross-attention of {Nq} queries', xlabel='tokens HW',
        ylabel='G multiply-accumulates',
    )  # fmt: skip


def _cross_by_queries(axes, config, S):
    K, L = config.K, config.L
    _plot_forms(axes.loglog, QUERIES, [_cross(config, q, S, K) for q in QUERIES])
    _mark(axes, config.Nq, f'$N_q$ = {config.Nq}')
    at = S / (L * K)
    _mark(axes, at, f'S / LK = {at:,.0f}')
    axes.set(
        title=f'cross-attention to S = {S:,} tokens', xlabel='queries $N_q$',
        ylabel='G multiply-accumulates',
    )  # fmt: skip


def _cross_by_keys(axes, config, S):
    _plot_forms(
        axes.semilogy, KEYS, [_cross(config, config.Nq, S, int(k)) for k in KEYS]
    )
    at = S / (config.Nq * config.L)
    if at <= KEYS[-1]:
        _mark(axes, at, f'S / $N_q$L = {at:.1f}')
    axes.set(
        title=f'cross-attention of {config.Nq} queries to S = {S:,} tokens',
        xlabel=f'keys K of a head and level (L = {config.L})',
        ylabel='G multiply-accumulates',
    )  # fmt: skip


def _encoder_by_keys(axes, config):
    C, M, _, _ = _sizes(config)
    axes.axhline(2, color=BLUE, label="W and W': 2 C²")
    for L, line in ((1, '-'), (4, '--')):
        levels = f'{L} level' + 's' * (L > 1)
        offsets = [f.offsets_and_weights(1, C, M, int(k), L) / C**2 for k in KEYS]
        sampled = [f.sampling(1, C, int(k), L) / C**2 for k in KEYS]
        axes.plot(KEYS, offsets, line, color=ORANGE, label=f'Δp, A: 3CMLK, {levels}')
        axes.plot(KEYS, sampled, line, color=PURPLE, label=f'sampling: 5LKC, {levels}')
        at = C / ((5 + 3 * M) * L)
        if 1 <= at <= KEYS[-1]:
            _mark(axes, at, f'5LK + 3MLK = C, {levels}')
    axes.set(
        title='terms of A.1 in the encoder', xlabel='keys K of a head and level',
        ylabel='C² multiply-accumulates a token', ylim=(0, 8),
    )  # fmt: skip


def _cheaper(axes, config, S):
    K, L = config.K, config.L
    line = QUERIES * L * K
    top = TOKENS[-1]
    axes.set(xscale='log', yscale='log', xlim=(10, QUERIES[-1]), ylim=(50, top))
    axes.fill_between(
        QUERIES, 50, np.clip(line, 50, top), color=BLUE, alpha=0.15, linewidth=0,
        label="W' cheaper before sampling",
    )  # fmt: skip
    axes.fill_between(
        QUERIES, np.clip(line, 50, top), top, color=GREEN, alpha=0.15, linewidth=0,
        label="W' cheaper after sampling",
    )  # fmt: skip
    axes.plot(QUERIES, line, color=GREY, label=f'HW = $N_q$LK, LK = {L * K}')
    axes.plot(S, S, 'o', color=BLUE, label='encoder: $N_q$ = S')
    axes.plot(config.Nq, S, 's', color=GREEN, label=f'decoder: $N_q$ = {config.Nq}')
    axes.set(
        title="A.1's min(HWC², $N_q$LKC²)", xlabel='queries $N_q$', ylabel='tokens HW'
    )


def draw_models(H, W):
    """Return what the five published variants cost, by part.

    On the left for a picture of (H, W) pixels, on the right for the size at which the
    published costs come out, with these marked.

    Parameters
    ----------
    H, W : int
        Pixels of the picture on the left.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(14, 4.6), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, size in ((left, (H, W)), (right, f.SIZE)):
        _bars(axes, *size)
        axes.set(
            title=f'{size[0]} × {size[1]} pixels', xlabel='G multiply-accumulates'
        )
    found = f.differences(*f.SIZE)
    for row, d in enumerate(found.values()):
        label = 'published, and how far this is from it' if row == 0 else None
        right.plot([d.published] * 2, [row - 0.42, row + 0.42], 'k', label=label)
        text = f'  {d.published} ({d.relative:+.1%})'.replace('-', '−')
        place = max(d.published, d.giga), row
        right.annotate(text, place, va='center', fontsize=9)
    right.set_xlim(0, 1.25 * max(d.giga for d in found.values()))
    left.invert_yaxis()
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc='outside lower center', ncols=len(labels), fontsize=9,
        frameon=False,
    )  # fmt: skip
    return figure


def _bars(axes, H, W):
    names = list(VARIANTS)
    works = [f.model_work(VARIANTS[name], H, W) for name in names]
    start = np.zeros(len(names))
    for part, colour in zip(works[0], PART_COLOURS):
        giga = np.array([work[part].by_paper / 1e9 for work in works])
        if giga.max() >= 1:  # less is not to be seen
            axes.barh(names, giga, 0.68, start, color=colour, label=part)
        start += giga
    axes.set_xlim(0, 1.12 * start.max())
    for row, total in enumerate(start):
        if (H, W) != f.SIZE:
            axes.annotate(f' {total:.1f}', (total, row), va='center', fontsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)


def save_plots(folder, config, H, W):
    """Write both pictures as PNG and SVG; return the files' paths.

    Parameters
    ----------
    folder : Path
        It must exist; files in it of the same names are overwritten.
    config : Config
        For `draw_attention`; the models are the published ones.
    H, W : int
        The picture's pixels, for both.

    Returns
    -------
    list of Path
        attention.png, attention.svg, models.png and models.svg.
    """
    paths = []
    for name, figure in (
        ('attention', draw_attention(config, H, W)),
        ('models', draw_models(H, W)),
    ):
        figure.draw_without_rendering()
        figure.set_layout_engine('none')  # laid out once is enough
        paths += [folder / f'{name}.png', folder / f'{name}.svg']
        figure.savefig(paths[-2], dpi=130)
        figure.savefig(paths[-1], metadata={'Date': None})
    return paths
