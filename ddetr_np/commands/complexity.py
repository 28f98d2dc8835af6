import json
from pathlib import Path

import click

from .fields import field_option

WIDTH = 120  # of the tables where there is no terminal


@click.command()
@click.option('--variant', default='multi_scale', help='Of the model.')
@click.option(
    '--size',
    nargs=2,
    type=click.IntRange(min=1),
    default=(800, 1333),
    metavar='H W',
    help='Of the picture, in pixels.',
)
@field_option
@click.option('--modules', is_flag=True, help='Also by module.')
@click.option(
    '--json',
    'json_path',
    type=click.Path(path_type=Path, dir_okay=False),
    help='File for all figures, every module included.',
)
@click.option(
    '--plots',
    type=click.Path(path_type=Path, file_okay=False),
    help='Folder for plots, as PNG and SVG.',
)
def complexity(variant, size, fields, modules, json_path, plots):
    """Count what a model costs, beside the formulas of A.1 and what was published.

    One picture of zeros is sent through the model: its products and samples are counted
    from the arrays that are really multiplied, and its arrays are weighed. Formulas are
    worked out from the configuration alone. A multiply-accumulate counts as one, which
    is what the published "GFLOPs" are.
    """
    import numpy as np
    from rich.console import Console

    from ..analysis.formulas import model_work
    from ..analysis.measure import measure
    from ..config import VARIANTS, make_config
    from ..errors import InputError
    from ..nn.ddetr import DeformableDETR

    config = make_config(variant, **fields)
    if json_path is not None and not json_path.parent.is_dir():
        raise InputError(f'--json {json_path}: there is no folder {json_path.parent}')
    H, W = size
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    with Console(stderr=True).status('counting'):
        measured = measure(DeformableDETR(config), np.zeros((1, H, W, 3), np.float32))
    work = model_work(config, H, W)
    console.print(_part_table(f'{variant}, {H} × {W}, float32', work, measured))
    console.print(_term_table(config, H, W, measured))
    if modules:
        console.print(_module_table(measured))
    _totals(work, measured)
    if config == VARIANTS[variant]:
        _published(console, variant, H, W, measured)
    if json_path is not None:
        _write(json_path, variant, config, size, work, measured)
    if plots is not None:
        from ..views.complexity import save_plots

        plots.mkdir(parents=True, exist_ok=True)
        for path in save_plots(plots, config, H, W):
            click.echo(f'plot: {path}')


def _table(title, *names):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, 'bold'))
    for i, name in enumerate(names):
        table.add_column(name, justify='right' if i else 'left', no_wrap=i > 0)
    return table


def _giga(n):
    return f'{n / 1e9:.3f}' if n else '–'


def _mega(n):
    return f'{n / 1e6:.1f}' if n else '–'


def _part_table(title, work, measured):
    columns = 'formula', 'counted', 'sampling', 'weights', 'moved, MB', 'peak, MB'
    table = _table(title, 'part, G multiply-accumulates', *columns)
    for part, w in work.items():
        cost = measured.parts[part]
        if not (w.total or cost.params or cost.frozen):
            continue
        table.add_row(
            part,
            _giga(w.products),
            _giga(cost.macs),
            _giga(cost.sampled),
            f'{cost.params + cost.frozen:,}',
            _mega(cost.bytes),
            _mega(cost.peak),
        )
    table.add_section()
    whole = measured.modules['']
    table.add_row(
        'the whole model',
        _giga(sum(w.products for w in work.values())),
        _giga(whole.macs),
        _giga(whole.sampled),
        f'{whole.params + whole.frozen:,}',
        _mega(whole.bytes),
        _mega(whole.peak),
    )
    return table


def attention_terms(config, H, W):
    """Return [(term, symbol, modules counted, in an encoder layer, in a decoder's)].

    The last two are the term's multiply-accumulates by A.1 and Eq. 1 for a picture of
    (H, W) pixels; None where the layer has no such term.
    """
    from ..analysis import formulas as f

    C, M, K, L = config.C, config.M, config.K, config.L
    S = sum(h * w for h, w in f.level_shapes(config, H, W))
    Nq = min(config.Nq, S) if config.two_stage else config.Nq
    both = S, Nq
    deform = 'self_attn', 'cross_attn'
    return [
        (
            'Δp, A', '3 Nq C M L K', ('sampling_offsets', 'attention_weights'), deform,
            [f.offsets_and_weights(q, C, M, K, L) for q in both],
        ),
        ("W'", 'HW C²', ('value_proj',), deform,
         [f.value_before(S, C)] * 2),
        ('W', 'Nq C²', ('output_proj',), deform,
         [f.output_product(q, C) for q in both]),
        ('sampling', '4 Nq L K C', None, deform,
         [f.interpolation(q, C, K, L) for q in both]),
        ('Eq. 1', '4 Nq C² + 2 Nq² C', ('',), (None, 'self_attn'),
         [None, f.self_attention(Nq, C)]),
    ]  # fmt: skip


def _term_table(config, H, W, measured):
    table = _table(
        'attention of one layer, by term of A.1', 'term', 'symbol',
        'encoder: formula', 'counted', 'decoder: formula', 'counted',
    )  # fmt: skip
    layers = (
        ('transformer.encoder.layers.0', config.encoder_layers),
        ('transformer.decoder.layers.0', config.decoder_layers),
    )
    for term, symbol, children, attentions, expected in attention_terms(config, H, W):
        row = [term, symbol]
        for (layer, n), attention, macs in zip(layers, attentions, expected):
            if not n or attention is None:
                row += ['–', '–']
                continue
            module = f'{layer}.{attention}'
            if children is None:
                counted = measured.modules[module].sampled
            else:
                names = [f'{module}.{child}'.rstrip('.') for child in children]
                counted = sum(measured.modules[name].macs for name in names)
            row += [f'{macs:,}', f'{counted:,}']
        table.add_row(*row)
    return table


def _module_table(measured):
    from rich.text import Text

    from ..analysis.timing import LAYER

    columns = 'counted', 'sampling', 'weights', 'moved, MB', 'peak, MB'
    title = 'by module, those of all layers added up, G multiply-accumulates'
    table = _table(title, 'module', *columns)
    alike = {}
    for name, cost in measured.modules.items():
        alike.setdefault(LAYER.sub(r'\1.*', name), []).append(cost)
    for name, costs in alike.items():
        if not sum(c.macs + c.sampled for c in costs):
            continue
        table.add_row(
            Text(name or 'the whole model', overflow='fold'),
            _giga(sum(c.macs for c in costs)),
            _giga(sum(c.sampled for c in costs)),
            f'{sum(c.params + c.frozen for c in costs):,}',
            _mega(sum(c.bytes for c in costs)),
            _mega(max(c.peak for c in costs)),
        )
    return table


def _totals(work, measured):
    whole = measured.modules['']
    same = all(
        (w.products, w.sampled) == (measured.parts[p].macs, measured.parts[p].sampled)
        for p, w in work.items()
    )
    by_paper = whole.macs + whole.sampled // 4 * 5
    click.echo(f'{"trainable":12}{whole.params:,} parameters')
    click.echo(f'{"frozen":12}{whole.frozen:,} convolution weights')
    click.echo(
        f'{"cost":12}{(whole.macs + whole.sampled) / 1e9:.2f} G as computed; '
        f'{by_paper / 1e9:.2f} G as A.1 counts sampling (5 Nq L K C for 4)'
    )
    click.echo(
        f'{"formula":12}'
        + ('equal to what was counted, in every part' if same else 'DIFFERENT')
    )


def _published(console, variant, H, W, measured):
    from ..analysis.formulas import FROZEN, PUBLISHED, SIZE, differences

    published, whole = PUBLISHED[variant], measured.modules['']
    for what, here, there in (
        ('trainable', whole.params, published.params),
        ('frozen', whole.frozen, FROZEN),
    ):
        verdict = 'the same' if here == there else f'DIFFERENT by {here - there:+,}'
        click.echo(f'published {what:10}{there:,}: {verdict}')
    here = differences(H, W)[variant]
    click.echo(
        f'published {"cost":10}{published.giga} G; at {H} × {W} it is '
        f'{here.relative:+.1%}'
    )
    table = _table(
        f'all five at {SIZE[0]} × {SIZE[1]}',
        'variant', 'G multiply-accumulates', 'published', 'difference',
    )  # fmt: skip
    for name, d in differences(*SIZE).items():
        table.add_row(name, f'{d.giga:.2f}', str(d.published), f'{d.relative:+.2%}')
    console.print(table)
    click.echo(
        'Published costs are means over pictures of COCO, whose sizes differ: resized\n'
        'to 800 × 1066 if 4 : 3, 800 × 1200 if 3 : 2, never more than 800 × 1333. At\n'
        f'{SIZE[0]} × {SIZE[1]} all five come out within 2 %. Counted are '
        'convolutions,\nmatrix products (in attention too) and sampling, by the '
        '5 Nq L K C of A.1; not\nnorms, ReLU, softmax, sums and positions. Three '
        'variants share a rounded 173\nthough the first stage alone costs 4 G: no size '
        'meets all of them exactly.'
    )


def _write(path, variant, config, size, work, measured):
    from dataclasses import asdict

    from ..analysis.formulas import PUBLISHED, SIZE, differences
    from ..files import replacing

    whole = measured.modules['']
    figures = {
        'options': {'variant': variant, 'size': size, 'config': config.to_dict()},
        'trainable': whole.params,
        'frozen': whole.frozen,
        'macs': whole.macs,
        'sampled': whole.sampled,
        'sampled_by_paper': whole.sampled // 4 * 5,
        'formula': {part: w._asdict() for part, w in work.items()},
        'parts': {part: asdict(cost) for part, cost in measured.parts.items()},
        'modules': {name: asdict(cost) for name, cost in measured.modules.items()},
        'published': {name: p._asdict() for name, p in PUBLISHED.items()},
        'published_size': {
            'size': SIZE,
            'variants': {n: d._asdict() for n, d in differences(*SIZE).items()},
        },
    }
    with replacing(path) as part:
        part.write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')
