"""Deformable DETR (arXiv 2010.04159), pixels to boxes, in the order of the data.

    python examples/pico_ddetr.py photo.jpg --weights scenes

Weights `w`: published name → array in PyTorch's layout. They tell what the model is:
any of the five variants, on any ResNet.

    N pictures, Nq queries, M heads, L levels, K keys, C channels, Cv = C / M
    x tokens of all levels, S = Σ_l H_l W_l of them; z queries; p̂ reference points

Maps are channels last, sizes (H, W). Points (x, y) and boxes (x, y, w, h), centre and
size, are in [0, 1]; (0, 0) is the top-left corner of picture and maps.
"""

import argparse

import numpy as np


# ---- The picture and its backbone, a ResNet ------------------------------------------
def normalise(picture):  # (H, W, 3) uint8 → (H, W, 3)
    """(picture / 255 − mean) / deviation, both of ImageNet."""
    mean, deviation = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return (picture.astype(np.float32) / 255 - mean) / deviation

def under(w, prefix):
    """The weights whose names begin with the prefix, without it."""
    return {n.removeprefix(prefix): a for n, a in w.items() if n.startswith(prefix)}

def conv(x, W, stride=1, dilation=1):  # (N, H, W, I), (O, I, k, k) → (N, H', W', O)
    """y_p = Σ_ij W_ij x[stride·p + dilation·(i, j) − border]; outside x is zero."""
    border, (rows, columns) = dilation * (W.shape[2] // 2), x.shape[1:3]
    x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    return sum(
        x[:, dilation * i :, dilation * j :][:, :rows:stride, :columns:stride]
        @ W[:, :, i, j].T for i, j in np.ndindex(W.shape[2:])
    )  # fmt: skip

def batch_norm(x, w):  # (N, H, W, C) → (N, H, W, C)
    """(x − mean) / √(variance + ε) · weight + bias, with stored statistics."""
    scale = w['weight'] / np.sqrt(w['running_var'] + 1e-5)
    return (x - w['running_mean']) * scale + w['bias']

def relu(x):  # (...) → (...)
    """max(x, 0)."""
    return np.maximum(x, 0)

def max_pool(x):  # (N, H, W, C) → (N, H/2, W/2, C)
    """The largest of 3 × 3 pixels, around every second one."""
    H, W = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.max([x[:, i : i + H : 2, j : j + W : 2] for i, j in np.ndindex(3, 3)], 0)

def block(x, w, stride, dilation):  # (N, H, W, I) → (N, H/stride, W/stride, O)
    """ReLU(x + F(x)), F being 3×3, 3×3 (basic) or 1×1, 3×3, 1×1 (bottleneck)."""
    y, last = x, 3 if 'conv3.weight' in w else 2
    if 'downsample.0.weight' in w:
        x = conv(x, w['downsample.0.weight'], stride)
        x = batch_norm(x, under(w, 'downsample.1.'))
    for i in range(1, last + 1):
        geometry = (stride, dilation) if i == last - 1 else (1, 1)
        y = batch_norm(conv(y, w[f'conv{i}.weight'], *geometry), under(w, f'bn{i}.'))
        y = relu(x + y if i == last else y)
    return y

def resnet(images, w, dc5):  # (N, H, W, 3) → [C2 … C5], C_s being 1 / 2^s as large
    """Stem and four stages; with DC5 the last one dilates its kernels, not striding."""
    x = batch_norm(conv(images, w['conv1.weight'], stride=2), under(w, 'bn1.'))
    x, stages = max_pool(relu(x)), []
    for s in (1, 2, 3, 4):
        i, dilated = 0, dc5 and s == 4
        while f'layer{s}.{i}.conv1.weight' in w:
            stride = 2 if i == 0 and s > 1 and not dilated else 1
            dilation = 2 if i > 0 and dilated else 1
            x = block(x, under(w, f'layer{s}.{i}.'), stride, dilation)
            i += 1
        stages.append(x)
    return stages

# ---- Multi-scale maps (A.2) and the positions of their pixels ------------------------
def standard(x, axes):
    """(x − mean) / √(variance + ε) over the axes."""
    mean, variance = (f(axes, keepdims=True) for f in (x.mean, x.var))
    return (x - mean) / np.sqrt(variance + 1e-5)

def group_norm(x, w):  # (N, H, W, C) → (N, H, W, C)
    """Over the pixels and the channels of a group; 32 groups, or the next divisor."""
    groups = next(g for g in range(min(32, x.shape[-1]), 0, -1) if x.shape[-1] % g == 0)
    y = standard(x.reshape(*x.shape[:3], groups, -1), (1, 2, 4))
    return y.reshape(x.shape) * w['weight'] + w['bias']

def multi_scale(stages, w):  # [C2 … C5] → [(N, H_l, W_l, C)] of L levels
    """Figure 4: 1×1 of the last stages, then 3×3 with stride 2, the first of C5."""
    L = sum(n.startswith('input_proj.') and n.endswith('.0.bias') for n in w)
    sources, maps = stages[-min(L, 3) :] + stages[-1:], []
    for l in range(L):
        W, b = (w[f'input_proj.{l}.0.{kind}'] for kind in ('weight', 'bias'))
        x = sources[l] if l < len(sources) else maps[-1]
        y = conv(x, W, stride=1 if W.shape[2] == 1 else 2) + b
        maps.append(group_norm(y, under(w, f'input_proj.{l}.1.')))
    return maps

def nearest(n, size):  # → (n,)
    """Which of `size` pixels each of n is nearest to, in single precision."""
    return (np.arange(n, dtype=np.float32) * np.float32(size / n)).astype(int)

def waves(x, n):  # (...) → (..., n)
    """sin, cos, sin, … of 2π x / 10⁴^(2⌊i/2⌋/n)."""
    i = np.arange(n, dtype=x.dtype)
    angle = 2 * np.pi * x[..., None] / 10_000 ** (2 * (i // 2) / n)
    return np.where(i % 2 == 0, np.sin(angle), np.cos(angle))

def positions(mask, C, dtype):  # (N, H, W) → (N, H, W, C)
    """Waves of y, then of x: fractions of the map without its padding."""
    v = (~mask).astype(dtype)
    y, x = ((v.cumsum(i) - 0.5) / (v.sum(i, keepdims=True) + 1e-6) for i in (1, 2))
    return np.concatenate([waves(y, C // 2), waves(x, C // 2)], -1)

def centres(H, W, valid):  # valid (N, 2) → (N, H·W, 2)
    """Pixel centres x, y as fractions of the map without its padding."""
    y, x = np.indices((H, W), valid.dtype).reshape(2, -1) + 0.5
    return np.stack([x, y], -1) / valid[:, None]

def tokens(maps):  # [(N, H_l, W_l, …)] → (N, S, …)
    """All levels, one after another, row by row."""
    return np.concatenate([m.reshape(len(m), -1, *m.shape[3:]) for m in maps], 1)

# ---- Attention: Eq. 1 among the queries, Eqs. 2 and 3 into the maps ------------------
def linear(x, w, name):  # (..., I) → (..., O)
    """y = x Wᵀ + b."""
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

def softmax(s):  # (..., n) → (..., n)
    """A ∝ exp(s), Σ A = 1."""
    A = np.exp(s - s.max(-1, keepdims=True))
    return A / A.sum(-1, keepdims=True)

def attention(z, x, w, M):  # (N, Nq, C), (N, Nq, C) → (N, Nq, C)
    """Eq. 1: Σ_m W_m [Σ_k A_mqk · W'_m x_k], A_mqk ∝ exp(z_qᵀ U_mᵀ V_m z_k / √Cv)."""
    W, b = np.split(w['in_proj_weight'], 3), np.split(w['in_proj_bias'], 3)  # U, V, W'
    query, key, value = (
        (a @ W[i].T + b[i]).reshape(*z.shape[:2], M, -1).swapaxes(1, 2)
        for i, a in enumerate((z, z, x))
    )  # (N, M, Nq, Cv)
    A = softmax(query @ key.swapaxes(2, 3) / query.shape[-1] ** 0.5)
    return linear((A @ value).swapaxes(1, 2).reshape(z.shape), w, 'out_proj')

def bilinear(x, p):  # (H, W, Cv), (..., 2) → (..., Cv)
    """x(φ(p)), φ(p) = p · (W, H) − ½ in pixels; outside x is zero."""
    size = np.array(x.shape[:2][::-1], p.dtype)
    x = np.pad(x, ((1, 2), (1, 2), (0, 0)))  # moves φ(p) by one pixel
    q = np.clip(p * size + 0.5, 0, size + 1)  # farther out all is zero
    j, i = np.moveaxis(q.astype(int), -1, 0)
    a, b = np.moveaxis(q % 1, -1, 0)[..., None]
    above = (1 - a) * x[i, j] + a * x[i, j + 1]
    below = (1 - a) * x[i + 1, j] + a * x[i + 1, j + 1]
    return (1 - b) * above + b * below

def ms_deform_attn(z, p_hat, x, sizes, padding, w, M):
    # (N, Nq, C), (N, Nq, L, 2 or 4), (N, S, C), [(H_l, W_l)], (N, S) → (N, Nq, C)
    """Eq. 3: Σ_m W_m [Σ_l Σ_k A_mlqk · W'_m x^l(φ_l(p̂_q) + Δp_mlqk)]."""
    N, Nq, C = z.shape
    dp = linear(z, w, 'sampling_offsets').reshape(N, Nq, M, len(sizes), -1, 2)
    A = softmax(linear(z, w, 'attention_weights').reshape(N, Nq, M, -1))
    A = A.reshape(dp.shape[:-1])  # (N, Nq, M, L, K)
    p = p_hat[:, :, None, :, None]  # the same for all heads and keys
    if p.shape[-1] == 2:  # Δp counts pixels of level l
        unit = 1 / np.array([(W, H) for H, W in sizes], z.dtype)[:, None]
    else:  # A.4: the box modulates Δp, which counts wh / 2K
        unit = p[..., 2:] / (2 * dp.shape[4])
    p = p[..., :2] + dp * unit
    value = np.where(padding[..., None], 0, linear(x, w, 'value_proj'))
    x_l = np.split(value, np.cumsum([H * W for H, W in sizes])[:-1], axis=1)
    y = np.zeros((N, Nq, M, C // M), z.dtype)
    for l, size in enumerate(sizes):
        maps = x_l[l].reshape(N, *size, M, -1)
        for n, m in np.ndindex(N, M):
            read = bilinear(maps[n, :, :, m], p[n, :, m, l])  # (Nq, K, Cv)
            y[n, :, m] += (A[n, :, m, l, :, None] * read).sum(1)
    return linear(y.reshape(N, Nq, C), w, 'output_proj')

def layer_norm(x, w, name):  # (..., C) → (..., C)
    """Over the channels."""
    return standard(x, -1) * w[f'{name}.weight'] + w[f'{name}.bias']

def encoder_layer(x, pos, p_hat, sizes, padding, w, M):  # (N, S, C) → (N, S, C)
    """Every token asks around its own place, on all levels."""
    y = ms_deform_attn(x + pos, p_hat, x, sizes, padding, under(w, 'self_attn.'), M)
    x = layer_norm(x + y, w, 'norm1')
    y = linear(relu(linear(x, w, 'linear1')), w, 'linear2')
    return layer_norm(x + y, w, 'norm2')

def decoder_layer(z, pos, p_hat, x, sizes, padding, w, M):  # (N, Nq, C) → (N, Nq, C)
    """Every query asks the others, then the encoded tokens around its reference."""
    z = layer_norm(z + attention(z + pos, z, under(w, 'self_attn.'), M), w, 'norm2')
    y = ms_deform_attn(z + pos, p_hat, x, sizes, padding, under(w, 'cross_attn.'), M)
    z = layer_norm(z + y, w, 'norm1')
    y = linear(relu(linear(z, w, 'linear1')), w, 'linear2')
    return layer_norm(z + y, w, 'norm3')

# ---- Boxes: A.3; refinement and two-stage, A.4 ---------------------------------------
def sigmoid(x):  # (...) → (...)
    """σ(x) = 1 / (1 + exp(−x))."""
    return 1 / (1 + np.exp(-x))

def inverse_sigmoid(p):  # (...) → (...)
    """σ⁻¹(p) = log(p / (1 − p)), held away from 0 and 1."""
    return np.log(np.maximum(p, 1e-5) / np.maximum(1 - p, 1e-5))

def predict(h, guess, w, d):  # (N, n, C), (N, n, 2 or 4) → (N, n, classes), (N, n, 4)
    """Head d: logits, and b̂ = σ(Δb + σ⁻¹(p̂)); a point guesses no width and height."""
    box = under(w, f'bbox_embed.{d}.layers.')
    delta = linear(relu(linear(relu(linear(h, box, '0')), box, '1')), box, '2')
    delta[..., : guess.shape[-1]] += guess
    return linear(h, w, f'class_embed.{d}'), sigmoid(delta)

def propose(x, place, sizes, padding, w, d, Nq, s, iou):  # (N, S, C) → (N, Nq, 4)
    """First stage: b̂_i around tokens, base size 2^(l−1) s; the best and distinct."""
    wh = np.repeat([s * 2**l for l in range(len(sizes))], [H * W for H, W in sizes])
    base = np.concatenate([place, np.broadcast_to(wh[:, None], place.shape)], -1)
    none = (padding | ~((base > 0.01) & (base < 0.99)).all(-1))[..., None]
    h = linear(np.where(none, 0, x), w, 'transformer.enc_output')
    h = layer_norm(h, w, 'transformer.enc_output_norm')
    logits, boxes = predict(h, np.where(none, np.inf, inverse_sigmoid(base)), w, d)
    order = np.argsort(-logits[..., :1], 1, kind='stable')
    boxes = np.take_along_axis(boxes, order, 1)
    xy, wh = np.split(boxes, 2, -1)
    low, high, area, late = xy - wh / 2, xy + wh / 2, wh.prod(-1), wh[..., 0] < 0
    for n, i in np.ndindex(area.shape if iou < 1 else (0, 0)):
        side = np.minimum(high[n], high[n, i]) - np.maximum(low[n], low[n, i])
        common = np.maximum(side, 0).prod(-1)
        covers = (common > iou * (area[n] + area[n, i] - common)) & ~late[n, i]
        late[n, i + 1 :] |= covers[i + 1 :]
    order = np.argsort(late, 1, kind='stable')[:, :Nq, None]
    return np.take_along_axis(boxes, order, 1)

# ---- All of it -----------------------------------------------------------------------
def layers(w, name):  # → [{name in the layer: array}]
    """The weights of each layer."""
    depth = sum(n.startswith(f'{name}.') and n.endswith('.norm1.weight') for n in w)
    return [under(w, f'{name}.{d}.') for d in range(depth)]

def detector(images, mask, w, M=8, dc5=False, Nq=300, s=0.05, iou=1):
    # (N, H, W, 3), (N, H, W) True on padding → (D, N, Nq, classes), (D, N, Nq, 4)
    """Logits and boxes of each decoder layer. What has a default, no shape tells."""
    t, dtype = under(w, 'transformer.'), images.dtype
    maps = multi_scale(resnet(images, under(w, 'backbone.0.body.'), dc5), w)
    C, sizes, (i, j) = maps[0].shape[-1], [m.shape[1:3] for m in maps], mask.shape[1:]
    masks = [mask[:, nearest(H, i)[:, None], nearest(W, j)] for H, W in sizes]
    valid = [np.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], 1) for m in masks]
    place = np.concatenate([centres(*size, v) for size, v in zip(sizes, valid)], 1)
    ratios = np.stack([v / (W, H) for v, (H, W) in zip(valid, sizes)], 1)  # (N, L, 2)
    pos = tokens([positions(m, C, dtype) + e for m, e in zip(masks, t['level_embed'])])
    x, padding = tokens(maps), tokens(masks)
    p_hat = place[:, :, None] * ratios[:, None]  # the same place on every level
    for layer in layers(t, 'encoder.layers'):
        x = encoder_layer(x, pos, p_hat, sizes, padding, layer, M)
    decoder, out = layers(t, 'decoder.layers'), []
    if 'enc_output.weight' in t:  # two-stage: queries are made of proposals
        p_hat = propose(x, place, sizes, padding, w, len(decoder), Nq, s, iou)
        z = linear(waves(p_hat, C // 2).reshape(*p_hat.shape[:2], -1), t, 'pos_trans')
        pos, z = np.split(layer_norm(z, t, 'pos_trans_norm'), 2, -1)
    else:  # they are learned
        pos, z = np.split(np.stack([w['query_embed.weight']] * len(images)), 2, -1)
        p_hat = sigmoid(linear(pos, t, 'reference_points'))
    for d, layer in enumerate(decoder):
        level_p = p_hat[:, :, None] * np.tile(ratios, p_hat.shape[-1] // 2)[:, None]
        z = decoder_layer(z, pos, level_p, x, sizes, padding, layer, M)
        out.append(predict(z, inverse_sigmoid(p_hat), w, d))
        p_hat = out[-1][1] if 'decoder.bbox_embed.0.layers.0.weight' in t else p_hat
    return [np.stack(each) for each in zip(*out)]

def best(logits, boxes, H, W, top=100):  # (Nq, classes), (Nq, 4) → (n,), (n,), (n, 4)
    """The best pairs of query and class: scores, labels, corners in pixels; no NMS."""
    scores = sigmoid(logits).ravel()
    order = np.argsort(-scores, kind='stable')[:top]
    query, label = np.divmod(order, logits.shape[1])
    xy, wh = np.split(boxes[query], 2, 1)
    return scores[order], label, np.hstack([xy - wh / 2, xy + wh / 2]) * [W, H, W, H]

def main():
    """Detect. The package reads the files, whatever their format and names."""
    import ddetr_np
    parser = argparse.ArgumentParser()
    parser.add_argument('picture')
    parser.add_argument('--weights', default='scenes')
    args = parser.parse_args()
    model = ddetr_np.load_model(args.weights)
    w, c = model.state_dict(), model.config
    p = ddetr_np.read_picture(args.picture)
    images = normalise(ddetr_np.resize(p, c.short, c.long))[None]
    fields = np.zeros(images.shape[:3], bool), w, c.M, c.dilation, c.Nq, c.base_scale
    logits, boxes = detector(images, *fields, c.proposal_iou)
    for score, label, box in zip(*best(logits[-1, 0], boxes[-1, 0], *p.shape[:2])):
        if score > 0.5:
            print(f'{score:.3f}', c.names[label] if c.names else label, *box.round(1))

if __name__ == '__main__':
    main()
