"""The same weights in transformers (PyTorch) and here: how far outputs are apart.

    python examples/compare_with_pytorch.py folder    # config.json and weights

Without a folder, as the Hugging Face hub holds it, the detector is a small one with
random weights. Needs PyTorch: pip install torch==2.13.0, then pip install transformers.
"""

import argparse
import sys
import tempfile

import ddetr_np

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(f'{error}: pip install torch==2.13.0, then pip install transformers')


def save_small_detector(folder):
    """Save a detector of transformers, with no weight left at zero."""
    torch.manual_seed(0)
    resnet = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[64, 128, 256, 512],
        out_features=['stage2', 'stage3', 'stage4'],
    )
    sizes = {'d_model': 64, 'encoder_ffn_dim': 128, 'decoder_ffn_dim': 128}
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=resnet, with_box_refine=True, **sizes
    )
    model = transformers.DeformableDetrForObjectDetection(config)
    for p in model.parameters():
        p.data += 0.02 * torch.randn(p.shape)
    model.save_pretrained(folder)


def compare(folder, pixels):
    """Print the largest differences between outputs for pixels (1, H, W, 3)."""
    theirs = transformers.DeformableDetrForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    out, _ = ddetr_np.load_model(folder).forward(pixels, keep='none')
    pairs = {
        'logits': (out.logits[-1], expected.logits.numpy()),
        'boxes': (out.boxes[-1], expected.pred_boxes.numpy()),
    }
    for name, (a, b) in pairs.items():
        print(f'{name}: {abs(a - b).max():.1e} of up to {abs(b).max():.2f}')


def main():
    """Read the command line and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', nargs='?')
    args = parser.parse_args()
    pixels = ddetr_np.normalise(ddetr_np.draw_scene(seed=7, H=320, W=400).picture)[None]
    if args.folder:
        compare(args.folder, pixels)
    else:
        with tempfile.TemporaryDirectory() as folder:
            save_small_detector(folder)
            compare(folder, pixels)


if __name__ == '__main__':
    main()
