"""Fine-tune a detector on your own pictures: a COCO file or a Pascal VOC folder.

    python examples/fine_tune.py --data cells/train.json --val cells/val.json \
        --weights r50_deformable_detr-checkpoint.pth --size 800

Class heads that do not fit are drawn anew, all else is kept. Without data, a few scenes
are drawn and the packaged detector learns from them: too few to get better.
"""

import argparse
import sys
from pathlib import Path

import ddetr_np


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', default='')
    parser.add_argument('--val', default='')
    parser.add_argument('--weights', default='scenes')
    parser.add_argument('--size', type=int, default=192, help='pixels, the short side')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--out', type=Path, default=Path('runs/fine-tuned'))
    args = parser.parse_args()
    if not args.data:
        args.data = ddetr_np.write_scenes(args.out / 'data', count=16, seed=1)
        args.val = ddetr_np.write_scenes(args.out / 'val', count=4, seed=2)
    long = args.size * 5 // 3
    settings = ddetr_np.Settings().replace(
        data=args.data,
        val=args.val,
        weights=args.weights,
        epochs=args.epochs,
        batch=2,
        accumulate=2,  # a step sees batch × accumulate pictures
        lr=5e-5,
        schedule='cosine',
        short=args.size,  # in evaluation
        long=long,
        augment={  # the published one makes pictures of 480 pixels and more
            'kind': 'custom',
            'scales': [args.size * 7 // 8, args.size, args.size * 9 // 8],
            'long': long,
        },
    )
    model, report = ddetr_np.train_model(settings, args.out / 'run', tell=tell)
    print(report or 'no evaluation: give --val')
    print(f'weights: {args.out / "run" / "model.safetensors"}')


def tell(kind, **facts):
    """Print what the loop tells of its steps."""
    if kind == 'step':
        record = facts['record']
        print(f'step {record["step"]}: loss {record["loss"]:.3f}', flush=True)
    elif kind == 'warning':
        print(facts['text'])


if __name__ == '__main__':
    try:
        main()
    except ddetr_np.InputError as error:  # of the data, the weights or the folder
        sys.exit(str(error))
    except KeyboardInterrupt:  # `ddetr-np train` saves first, and can go on
        sys.exit('stopped')
