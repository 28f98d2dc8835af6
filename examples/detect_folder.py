"""Detect in every picture of a folder: a JSON line for each.

    python examples/detect_folder.py pictures > found.jsonl
    python examples/detect_folder.py pictures --weights SenseTime/deformable-detr

Without a folder, scenes are drawn and detected.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import ddetr_np


def main():
    """Read the command line and detect."""
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', nargs='?', type=Path)
    parser.add_argument('--weights', default='scenes')
    parser.add_argument('--threshold', type=float, default=0.5)
    args = parser.parse_args()
    model = ddetr_np.load_model(args.weights)
    if args.folder:
        detect_folder(model, args.folder, args.threshold)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ddetr_np.write_scenes(folder, count=4)
            detect_folder(model, Path(folder) / 'pictures', args.threshold)


def detect_folder(model, folder, threshold):
    """Print {'picture': …, 'found': [{'score', 'label', 'name', 'box'}, …]} a line."""
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        try:
            found = ddetr_np.detect(model, path, threshold)
        except ddetr_np.InputError as error:  # no picture, or a broken one: go on
            print(error, file=sys.stderr)
            continue
        name = path.relative_to(folder).as_posix()
        line = {'picture': name, 'found': [d._asdict() for d in found]}
        print(json.dumps(line), flush=True)


if __name__ == '__main__':
    main()
