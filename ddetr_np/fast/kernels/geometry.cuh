// x(·) of Eqs. 2 and 3: bilinear reading of a map that is zero outside.
// The same arithmetic as `ops.bilinear.corners`, whose remarks hold here as well.

__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }

template <class F> struct Point {
    int column, row;  // of the pixel left of and above it; −2 where not a number
    F x, y;           // how far it lies beyond that pixel, in [0, 1), or not a number
};

// A point far outside has no neighbours wherever it is: hold it where the conversion
// to int is defined. What is not a number fails both comparisons, and stays.
template <class F> __device__ F hold(F x, int size) {
    return x < F(-2) ? F(-2) : x > F(size) ? F(size) : x;
}

template <class F> __device__ Point<F> locate(F x, F y, int H, int W) {
    // φ_l: (0, 0) is the centre of the first pixel. The product is rounded before the
    // difference: fused, a point on a pixel's centre could fall to its other side.
    x = hold(product(x, F(W)) - F(0.5), W);
    y = hold(product(y, F(H)) - F(0.5), H);
    F column = floor(x), row = floor(y);
    return {column == column ? int(column) : -2, row == row ? int(row) : -2,
            x - column, y - row};
}

template <class F> struct Corner {
    int pixel;      // y·W + x, held inside the map
    F g, g_x, g_y;  // weight, ∂g/∂x and ∂g/∂y per pixel; 0 outside the map
};

// i and j: 0 for the left and the upper corners, 1 for the right and the lower ones.
template <class F>
__device__ Corner<F> corner(const Point<F> &p, int i, int j, int H, int W) {
    int column = p.column + i, row = p.row + j;
    F inside = column >= 0 && column < W && row >= 0 && row < H;
    F a = (i ? p.x : 1 - p.x) * inside, b = (j ? p.y : 1 - p.y) * inside;
    column = min(max(column, 0), W - 1);
    row = min(max(row, 0), H - 1);
    return {row * W + column, a * b, i ? b : -b, j ? a : -a};
}

// What a level's row of the table `levels` (L, 4) says.
struct Level {
    int H, W;
    int token;  // its first in S = Σ H·W
    int cell;   // its first in Σ (H + 1)·(W + 1): see gather.cu
};

__device__ inline Level level_of(const int *levels, int l) {
    const int *at = levels + 4 * l;
    return {at[0], at[1], at[2], at[3]};
}

// Point p of a query's L·K, where loc and A are the query's own.
template <class F, class P>
__device__ Point<F> locate_own(const P *loc, int p, const Level &level) {
    return locate(F(widen(loc[2 * p])), F(widen(loc[2 * p + 1])), level.H, level.W);
}
