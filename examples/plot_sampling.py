"""Draw where a query reads and how much each reading counts: the paper's Figure 6.

    python examples/plot_sampling.py photo.jpg --query 17 --out sampling.png

Without a query it is the best detection's, without a picture a scene is drawn.
"""

import argparse

import ddetr_np
from ddetr_np.views.sampling import draw_sampling, save_figure


def main():
    """Read the command line and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument('picture', nargs='?')
    parser.add_argument('--weights', default='scenes')
    parser.add_argument('--query', type=int)
    parser.add_argument('--layer', type=int, default=-1, help='of the decoder')
    parser.add_argument('--out', default='sampling.png')
    args = parser.parse_args()
    picture = args.picture or ddetr_np.draw_scene(seed=7).picture

    seen = ddetr_np.look(ddetr_np.load_model(args.weights), picture)
    query = int(seen.best.queries[0]) if args.query is None else args.query
    reads = ddetr_np.decoder_reads(seen, query, args.layer)

    # loc (M, L, K, 2) in pixels, A (M, L, K): what the figure shows, as numbers
    share = reads.A.sum((0, 2)) / reads.A.sum()
    print(f'{reads.title}: {reads.label}')
    for l, (H, W) in enumerate(reads.shapes):
        print(f'level {l}, {W} × {H}: {share[l]:.0%} of the attention')
    save_figure(args.out, draw_sampling(reads).figure)
    print(f'figure: {args.out}')


if __name__ == '__main__':
    main()
