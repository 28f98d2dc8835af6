"""Multi-scale deformable attention in a NumPy model of one's own, and its gradients.

    python examples/attention_in_my_model.py

The model shall say what a map holds three pixels to the right of a place and two above.
Where to look it learns from the gradient of its loss by the sampling offsets.
"""

import numpy as np

from ddetr_np.ops import activation, ms_deform_attn

SHAPES = (24, 32), (12, 16)  # H, W of the levels
M, L, K, C, Nq = 2, 2, 4, 8, 200
SHIFT = np.array([3, -2])  # x, y in pixels of the first level

rng = np.random.default_rng(0)
waves = rng.uniform(-0.3, 0.3, (2, C))


def what_is_at(xy):
    """Return the map's channels (..., C) at xy (..., 2), pixels of the first level."""
    return np.sin(xy @ waves + np.arange(C))


def centres(l):
    """Return the pixel centres (H_l W_l, 2) of a level, in pixels of the first."""
    return (np.indices(SHAPES[l])[::-1].reshape(2, -1).T + 0.5) * 2**l


size = np.array(SHAPES[0][::-1])
place = rng.uniform(0.2, 0.8, (1, Nq, 2))
p_hat = np.repeat(place[:, :, None], L, axis=2)  # the reference on each level
target = what_is_at(place * size + SHIFT).reshape(1, Nq, M, C // M)
x = np.concatenate([what_is_at(centres(l)) for l in range(L)])
value = x.reshape(1, -1, M, C // M)  # W' x in a larger model
weights = {  # the same for all queries; linear in z in a larger model
    'offset': rng.normal(size=(M, L, K, 2)),
    'score': np.zeros((M, L * K)),
}


def forward(w):
    """Return y (1, Nq, M, C / M) and what the backward pass needs."""
    offset = np.broadcast_to(w['offset'], (1, Nq, M, L, K, 2))
    loc, c1 = ms_deform_attn.sampling_locations(p_hat, offset, SHAPES)
    A, c2 = activation.softmax(w['score'])
    A = np.broadcast_to(A.reshape(M, L, K), (1, Nq, M, L, K))
    y, c3 = ms_deform_attn.ms_deform_attn(value, SHAPES, loc, A)
    return y, (c1, c2, c3)


def backward(dy, cache):
    """Return each weight's gradient: the same operations, the last one first."""
    c1, c2, c3 = cache
    _, dloc, dA = ms_deform_attn.ms_deform_attn_backward(dy, c3)  # the first is dvalue
    dscore = activation.softmax_backward(dA.sum((0, 1)).reshape(M, L * K), c2)
    _, doffset = ms_deform_attn.sampling_locations_backward(dloc, c1)
    return {'offset': doffset.sum((0, 1)), 'score': dscore}


for step in range(101):
    y, cache = forward(weights)
    if step % 20 == 0:
        print(f'step {step:3}: loss {np.square(y - target).mean():.5f}')
    for name, g in backward(2 * (y - target) / y.size, cache).items():
        weights[name] -= 10 * g
core = cache[2]
looks = (core.A[..., None] * core.loc).sum((3, 4)).mean(2) - place  # where on average
print('looks', (looks * size).mean((0, 1)).round(2), 'away; asked for was', SHIFT)
