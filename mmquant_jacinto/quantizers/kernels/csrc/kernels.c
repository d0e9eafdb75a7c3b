/* Fake quantization on a CPU in one pass over memory.
 *
 * Plain C, called through ctypes: no header of Python or torch, so that it is built
 * in a second and fits every version of both. Each loop has a function of its own,
 * compiled for several instruction sets; OpenMP's threads are those of torch, whose
 * runtime is loaded first and global.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORIZED
#endif

/* Elements below which a thread is not worth waking. */
#define GRAIN 32768
/* Bit k of byte b of a mask belongs to element k * LANE + b of 8 * LANE of them: lanes
 * lie in memory as they are read, and packing them takes no shuffles. */
#define LANE 512

static inline float clamp(float x, float low, float high) {
    /* NaN passes. */
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline float on_grid_half_even(
    float v, float inverse, float scale, float low, float high) {
    return nearbyintf(clamp(v, low, high) * inverse) * scale;
}

static inline float on_grid_half_up(
    float v, float inverse, float scale, float low, float high) {
    return floorf(clamp(v, low, high) * inverse + 0.5f) * scale;
}

#define QUANTIZE(NAME, ON_GRID)                                                         \
    VECTORIZED static void NAME(                                                       \
        const float *x, float *out, int64_t n, float inverse, float scale, float low,  \
        float high) {                                                                  \
        _Pragma("omp simd")                                                            \
        for (int64_t i = 0; i < n; ++i)                                                \
            out[i] = ON_GRID(x[i], inverse, scale, low, high);                         \
    }
QUANTIZE(quantize_half_even, on_grid_half_even)
QUANTIZE(quantize_half_up, on_grid_half_up)

/* Which of up to eight lanes of elements are strictly between the limits. */
VECTORIZED static void note_inside(
    const float *x, uint8_t *inside, int64_t n, float low, float high) {
    for (int lane = 0; lane * LANE < n; ++lane) {
        const float *part = x + lane * LANE;
        int64_t size = n - lane * LANE < LANE ? n - lane * LANE : LANE;
        uint8_t kept = lane ? 0xff : 0;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            uint8_t bit = (part[i] > low) & (part[i] < high);
            inside[i] = (inside[i] & kept) | (uint8_t)(bit << lane);
        }
    }
}

VECTORIZED static void mask(
    const float *grad, const uint8_t *inside, float *out, int64_t n) {
    for (int lane = 0; lane * LANE < n; ++lane) {
        int64_t start = lane * LANE, size = n - start < LANE ? n - start : LANE;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
            out[start + i] = inside[i] >> lane & 1 ? grad[start + i] : 0.0f;
    }
}

/* Of one block: gradient of x, and sums for the step and for what the grid clips. */
#define LEARNED_GRADIENT(NAME, ROUND)                                                  \
    VECTORIZED static void NAME(                                                       \
        const float *x, const float *grad, float *out, int64_t n, float scale,         \
        float low, float high, float low_end, float high_end, float low_step,          \
        float high_step, float *to_step, float *to_end) {                              \
        float step_sum = 0.0f, end_sum = 0.0f;                                         \
        _Pragma("omp simd reduction(+ : step_sum, end_sum)")                           \
        for (int64_t i = 0; i < n; ++i) {                                              \
            float v = x[i], g = grad[i];                                               \
            float value = clamp(v, low, high), steps = value / scale;                  \
            int below = (v < low_end) & (value <= low_end);                            \
            int above = (v > high_end) & (value >= high_end);                          \
            float factor = ROUND - steps;                                              \
            factor = below ? low_step : factor;                                        \
            factor = above ? high_step : factor;                                       \
            step_sum += g * factor;                                                    \
            end_sum += below | above ? g : 0.0f;                                       \
            out[i] = (v > low) & (v < high) ? g : 0.0f;                                \
        }                                                                              \
        *to_step = step_sum;                                                           \
        *to_end = end_sum;                                                             \
    }
LEARNED_GRADIENT(learned_half_even, nearbyintf(steps))
LEARNED_GRADIENT(learned_half_up, floorf(steps + 0.5f))

VECTORIZED static void quantize_row(
    const float *w, float *out, int64_t n, float factor, float step, float low,
    float high) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
        out[i] = clamp(nearbyintf(w[i] * factor), low, high) * step;
}

VECTORIZED static float scale_and_dot(
    float *grad, const float *w, int64_t n, float factor) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; ++i) {
        dot += grad[i] * w[i];
        grad[i] *= factor;
    }
    return dot;
}

VECTORIZED static void reach_of_row(const float *w, int64_t n, float *low, float *high) {
    float least = w[0], largest = w[0], nan = 0.0f;
#pragma omp simd reduction(min : least) reduction(max : largest) reduction(+ : nan)
    for (int64_t i = 0; i < n; ++i) {
        least = w[i] < least ? w[i] : least;
        largest = w[i] > largest ? w[i] : largest;
        /* A comparison skips NaN; this is zero but for NaN and infinity. */
        nan += w[i] - w[i];
    }
    *low = least + nan;
    *high = largest + nan;
}

/* Puts `x` on a grid (`out` may be `x`), and notes in a bit for each element whether it
 * was not clipped, where `inside` is not null. */
void mmquant_put_on_grid(
    const float *x, float *out, uint8_t *inside, int64_t n, float inverse, float scale,
    float low, float high, int half_up) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += 8 * LANE) {
        int64_t size = n - start < 8 * LANE ? n - start : 8 * LANE;
        if (inside) note_inside(x + start, inside + start / 8, size, low, high);
        (half_up ? quantize_half_up : quantize_half_even)(
            x + start, out + start, size, inverse, scale, low, high);
    }
}

/* The gradient where nothing was clipped, zero elsewhere. */
void mmquant_mask(const float *grad, const uint8_t *inside, float *out, int64_t n) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += 8 * LANE) {
        int64_t size = n - start < 8 * LANE ? n - start : 8 * LANE;
        mask(grad + start, inside + start / 8, out + start, size);
    }
}

/* Gradients of a grid whose step is learned: of x into `out`, of the step into
 * sums[0]; the sum of those that the grid itself clips into sums[1]. */
void mmquant_learned_gradient(
    const float *x, const float *grad, float *out, int64_t n, float scale, float low,
    float high, float low_end, float high_end, float low_step, float high_step,
    int half_up, float *sums) {
    double to_step = 0.0, to_end = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : to_step, to_end) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += GRAIN) {
        int64_t size = n - start < GRAIN ? n - start : GRAIN;
        float step_part, end_part;
        (half_up ? learned_half_up : learned_half_even)(
            x + start, grad + start, out + start, size, scale, low, high, low_end,
            high_end, low_step, high_step, &step_part, &end_part);
        to_step += step_part;
        to_end += end_part;
    }
    sums[0] = to_step;
    sums[1] = to_end;
}

/* out = clamp(round(w * factor), low, high) * step, with a factor and a step a row. */
void mmquant_quantize_rows(
    const float *w, float *out, int64_t rows, int64_t columns, const float *factor,
    const float *step, float low, float high) {
#pragma omp parallel for schedule(static) if (rows * columns > GRAIN)
    for (int64_t r = 0; r < rows; ++r)
        quantize_row(
            w + r * columns, out + r * columns, columns, factor[r], step[r], low, high);
}

/* The same of many matrices, whose rows are numbered end to end from those that the
 * starts say; each row has its limits too. */
void mmquant_quantize_all(
    const float *const *matrices, float *const *outs, const int64_t *rows,
    const int64_t *columns, const int64_t *first_rows, int64_t count,
    const float *factor, const float *step, const float *low, const float *high) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t m = 0; m < count; ++m)
        for (int64_t r = 0; r < rows[m]; ++r) {
            int64_t row = first_rows[m] + r, n = columns[m];
            quantize_row(
                matrices[m] + r * n, outs[m] + r * n, n, factor[row], step[row],
                low[row], high[row]);
        }
}

/* Gradients of a folded normalization: `grad` of the folded weight becomes that of the
 * weight; that of the normalization's weight follows from the dot product of each row
 * with the weight's, and from the gradient of the folded bias. */
void mmquant_fold_gradient(
    float *grad, const float *w, int64_t rows, int64_t columns, const float *factor,
    const float *bias_grad, const float *offset, const float *deviation,
    float *to_norm) {
#pragma omp parallel for schedule(static) if (rows * columns > GRAIN)
    for (int64_t r = 0; r < rows; ++r) {
        float dot =
            scale_and_dot(grad + r * columns, w + r * columns, columns, factor[r]);
        to_norm[r] = (dot + bias_grad[r] * offset[r]) * deviation[r];
    }
}

/* Smallest and largest element of each row of each matrix, end to end. */
void mmquant_reach(
    const float *const *matrices, const int64_t *rows, const int64_t *columns,
    const int64_t *starts, int64_t count, float *low, float *high) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t m = 0; m < count; ++m)
        for (int64_t r = 0; r < rows[m]; ++r)
            reach_of_row(
                matrices[m] + r * columns[m], columns[m], low + starts[m] + r,
                high + starts[m] + r);
}

/* From sums to integers within limits, and to the numbers that these stand for: scaled
 * and rounded in the sums' own precision (WIDE), or in float's. `integers` may be the
 * sums' own memory; `real` may be null. */
#define HALF_EVEN(v) nearbyint(v)
#define HALF_UP(v) floor((v) + 0.5)
#define HALF_AWAY(v) copysign(floor(fabs(v) + 0.5), v)
#define HALF_EVEN_F(v) nearbyintf(v)
#define HALF_UP_F(v) floorf((v) + 0.5f)
#define HALF_AWAY_F(v) copysignf(floorf(fabsf(v) + 0.5f), v)
#define REQUANTIZE(NAME, SUM, T, ROUND)                                                \
    VECTORIZED static void NAME(                                                       \
        const SUM *x, float *integers, float *real, int64_t n, float factor, T low,    \
        T high, float scale) {                                                         \
        if (real) {                                                                    \
            _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {                      \
                T v = ROUND((T)x[i] * (T)factor);                                      \
                v = v < low ? low : v;                                                 \
                v = v > high ? high : v;                                               \
                integers[i] = (float)v;                                                \
                real[i] = (float)v * scale;                                            \
            }                                                                          \
        } else {                                                                       \
            _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {                      \
                T v = ROUND((T)x[i] * (T)factor);                                      \
                v = v < low ? low : v;                                                 \
                v = v > high ? high : v;                                               \
                integers[i] = (float)v;                                                \
            }                                                                          \
        }                                                                              \
    }                                                                                  \
    /* The same where each element has a factor of its own. */                         \
    VECTORIZED static void NAME##_each(                                                \
        const SUM *x, float *integers, float *real, int64_t n, const float *factor,    \
        T low, T high, float scale) {                                                  \
        _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {                          \
            T v = ROUND((T)x[i] * (T)factor[i]);                                       \
            v = v < low ? low : v;                                                     \
            v = v > high ? high : v;                                                   \
            integers[i] = (float)v;                                                    \
            real[i] = (float)v * scale;                                                \
        }                                                                              \
    }                                                                                  \
    static void NAME##_all(                                                            \
        const SUM *x, float *integers, float *real, int64_t n, int64_t columns,        \
        const float *factors, int64_t count, int each, T low, T high, float scale) {   \
        int64_t rows = (n + columns - 1) / columns;                                    \
        _Pragma("omp parallel for schedule(static) if (n > GRAIN)")                    \
        for (int64_t r = 0; r < rows; ++r) {                                           \
            int64_t at = r * columns, size = n - at < columns ? n - at : columns;      \
            float *to = real ? real + at : real;                                       \
            if (each)                                                                  \
                NAME##_each(                                                           \
                    x + at, integers + at, to, size, factors, low, high, scale);       \
            else                                                                       \
                NAME(                                                                  \
                    x + at, integers + at, to, size,                                   \
                    factors ? factors[r % count] : 1.0f, low, high, scale);            \
        }                                                                              \
    }
REQUANTIZE(requantize_even, float, float, HALF_EVEN_F)
REQUANTIZE(requantize_up, float, float, HALF_UP_F)
REQUANTIZE(requantize_away, float, float, HALF_AWAY_F)
REQUANTIZE(requantize_double_even, double, double, HALF_EVEN)
REQUANTIZE(requantize_double_up, double, double, HALF_UP)
REQUANTIZE(requantize_double_away, double, double, HALF_AWAY)

/* Of `n` sums; rows of as many columns are of one channel, with `count` factors in turn,
 * or, where `each` column is a channel, with a factor for each; `factors` null: 1.
 * Rounding 0: ties to even, 1: up, 2: away from zero. */
void mmquant_requantize(
    const float *x, float *integers, float *real, int64_t n, int64_t columns,
    const float *factors, int64_t count, int each, int rounding, float low, float high,
    float scale) {
    (rounding == 0   ? requantize_even_all
     : rounding == 1 ? requantize_up_all
                     : requantize_away_all)(
        x, integers, real, n, columns, factors, count, each, low, high, scale);
}

void mmquant_requantize_double(
    const double *x, float *integers, float *real, int64_t n, int64_t columns,
    const float *factors, int64_t count, int each, int rounding, float low, float high,
    float scale) {
    (rounding == 0   ? requantize_double_even_all
     : rounding == 1 ? requantize_double_up_all
                     : requantize_double_away_all)(
        x, integers, real, n, columns, factors, count, each, low, high, scale);
}

/* Two quantized tensors in steps of their sum, in float. */
VECTORIZED static void add_steps(
    const float *x, const float *y, float *out, int64_t n, float first, float second) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
        out[i] = x[i] * first + y[i] * second;
}

/* The same by multiply-adds that round once, of stored integers. */
VECTORIZED static void add_stored(
    const float *x, const float *y, float *out, int64_t n, double first, double second,
    double zero_first, double zero_second, double offset, float zero) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float sum = (float)(((double)y[i] + zero_second) * second + offset);
        sum = (float)(((double)x[i] + zero_first) * first + (double)sum);
        out[i] = nearbyintf(sum) - zero;
    }
}

void mmquant_add_steps(
    const float *x, const float *y, float *out, int64_t n, float first, float second) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += GRAIN)
        add_steps(
            x + start, y + start, out + start, n - start < GRAIN ? n - start : GRAIN,
            first, second);
}

void mmquant_add_stored(
    const float *x, const float *y, float *out, int64_t n, double first, double second,
    double zero_first, double zero_second, double offset, float zero) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += GRAIN)
        add_stored(
            x + start, y + start, out + start, n - start < GRAIN ? n - start : GRAIN,
            first, second, zero_first, zero_second, offset, zero);
}

/* Products of two quantized tensors in steps of the output, in float; `rounds`: to even
 * with the zero point in. */
VECTORIZED static void multiply(
    const float *x, const float *y, float *out, int64_t n, float ratio, float zero,
    int rounds) {
    if (rounds) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
            out[i] = nearbyintf(x[i] * y[i] * ratio + zero) - zero;
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
            out[i] = x[i] * y[i] * ratio;
    }
}

void mmquant_multiply(
    const float *x, const float *y, float *out, int64_t n, float ratio, float zero,
    int rounds) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += GRAIN)
        multiply(
            x + start, y + start, out + start, n - start < GRAIN ? n - start : GRAIN,
            ratio, zero, rounds);
}

/* What a table has for each integer, and the number that it stands for. */
VECTORIZED static void look_up(
    const float *x, float *integers, float *real, int64_t n, const float *table,
    int32_t last, float low, float scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        int32_t place = (int32_t)(x[i] - low);
        place = place < 0 ? 0 : place;
        float value = table[place > last ? last : place];
        integers[i] = value;
        real[i] = value * scale;
    }
}

void mmquant_look_up(
    const float *x, float *integers, float *real, int64_t n, const float *table,
    int64_t size, float low, float scale) {
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t start = 0; start < n; start += GRAIN)
        look_up(
            x + start, integers + start, real + start,
            n - start < GRAIN ? n - start : GRAIN, table, (int32_t)(size - 1), low,
            scale);
}

VECTORIZED static void mix(
    const float *const *pixels, const float *shares, float *out, int64_t n) {
    const float *a = pixels[0], *b = pixels[1], *c = pixels[2], *d = pixels[3];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float sum = a[i] * shares[0] + b[i] * shares[1];
        sum += c[i] * shares[2];
        out[i] = sum + d[i] * shares[3];
    }
}

static inline int64_t within(float place, int64_t size) {
    /* Once more, for places that are no numbers. */
    return place > 0.0f ? (place < size - 1 ? (int64_t)place : size - 1) : 0;
}

/* Bilinear interpolation of rows of channels, one for each pixel of each of `parts`
 * maps, at `points` places of each; outside there are zeros. */
void mmquant_interpolate(
    const float *pixels, const float *rows, const float *columns, float *out,
    int64_t parts, int64_t points, int64_t channels, int64_t height, int64_t width) {
#pragma omp parallel for schedule(static) if (parts * points * channels > GRAIN)
    for (int64_t p = 0; p < parts * points; ++p) {
        const float *map = pixels + p / points * height * width * channels, *four[4];
        float shares[4], top = floorf(rows[p]), left = floorf(columns[p]);
        float down = rows[p] - top, across = columns[p] - left;
        for (int k = 0; k < 4; ++k) {
            float y = top + (k >> 1), x = left + (k & 1);
            float at_y = clamp(y, 0.0f, height - 1), at_x = clamp(x, 0.0f, width - 1);
            float inside = (at_y == y) & (at_x == x) ? 1.0f : 0.0f;
            float share = (k >> 1 ? down : 1.0f - down) * (k & 1 ? across : 1.0f - across);
            shares[k] = share * inside;
            four[k] = map + (within(y, height) * width + within(x, width)) * channels;
        }
        mix(four, shares, out + p * channels, channels);
    }
}

/* Elements that are added up in float before they go to a sum in double. */
#define PART 1024

#define ROW_SUM(NAME, TERM)                                                            \
    VECTORIZED static double NAME(const float *x, int64_t n, float a, float b) {       \
        double total = 0.0;                                                            \
        for (int64_t start = 0; start < n; start += PART) {                            \
            const float *part = x + start;                                             \
            int64_t size = n - start < PART ? n - start : PART;                        \
            float sum = 0.0f;                                                          \
            _Pragma("omp simd reduction(+ : sum)")                                     \
            for (int64_t i = 0; i < size; ++i) sum += TERM(part[i], a, b);             \
            total += sum;                                                              \
        }                                                                              \
        return total;                                                                  \
    }
#define ITSELF(v, a, b) (v)
#define DISTANCE(v, a, b) fabsf((v) - (a))
#define SQUARED(v, a, b) (((v) - (a)) * ((v) - (a)))
#define NEAR(v, a, b) clamp(v, a, b)
ROW_SUM(sum_of, ITSELF)
ROW_SUM(sum_of_distances, DISTANCE)
ROW_SUM(sum_of_squares, SQUARED)
ROW_SUM(sum_of_near, NEAR)

typedef double (*row_sum)(const float *, int64_t, float, float);

static float channel_mean(
    row_sum sum, const float *x, int64_t outer, int64_t stride, int64_t inner, float a,
    float b) {
    double total = 0.0;
    for (int64_t r = 0; r < outer; ++r) total += sum(x + r * stride, inner, a, b);
    return (float)(total / ((double)outer * inner));
}

/* The same of up to BLOCK channels that lie side by side, each with an `a` and `b`. */
#define BLOCK 64
#define ROWS 64
#define COLUMN_SUMS(NAME, TERM)                                                        \
    VECTORIZED static void NAME(                                                       \
        const float *x, int64_t rows, int64_t stride, int64_t n, const float *a,       \
        const float *b, double *totals) {                                              \
        for (int64_t i = 0; i < n; ++i) totals[i] = 0.0;                               \
        for (int64_t start = 0; start < rows; start += ROWS) {                         \
            int64_t end = rows - start < ROWS ? rows : start + ROWS;                   \
            float sums[BLOCK] = {0.0f};                                                \
            for (int64_t r = start; r < end; ++r) {                                    \
                const float *row = x + r * stride;                                     \
                _Pragma("omp simd")                                                    \
                for (int64_t i = 0; i < n; ++i) sums[i] += TERM(row[i], a[i], b[i]);   \
            }                                                                          \
            for (int64_t i = 0; i < n; ++i) totals[i] += sums[i];                      \
        }                                                                              \
    }
COLUMN_SUMS(sums_of, ITSELF)
COLUMN_SUMS(sums_of_distances, DISTANCE)
COLUMN_SUMS(sums_of_squares, SQUARED)
COLUMN_SUMS(sums_of_near, NEAR)

static void robust_means_of_columns(
    const float *x, int64_t rows, int64_t stride, int64_t n, float *robust,
    float *means, float *variances) {
    double totals[BLOCK];
    float low[BLOCK] = {0.0f}, high[BLOCK] = {0.0f};
    sums_of(x, rows, stride, n, low, high, totals);
    for (int64_t i = 0; i < n; ++i) robust[i] = (float)(totals[i] / rows);
    if (variances) {
        memcpy(means, robust, n * sizeof(float));
        sums_of_squares(x, rows, stride, n, means, high, totals);
        for (int64_t i = 0; i < n; ++i) variances[i] = (float)(totals[i] / rows);
    }
    for (int step = 0; step < 2; ++step) {
        sums_of_distances(x, rows, stride, n, robust, high, totals);
        for (int64_t i = 0; i < n; ++i) {
            float reach = (float)(totals[i] / rows);
            low[i] = robust[i] - reach;
            high[i] = robust[i] + reach;
        }
        sums_of_near(x, rows, stride, n, low, high, totals);
        for (int64_t i = 0; i < n; ++i) robust[i] = (float)(totals[i] / rows);
    }
}

/* Two steps of Huber's estimator of each channel's mean: x is (outer, channels, inner).
 * With the plain mean and the variance, where there is room for them. */
void mmquant_robust_moments(
    const float *x, int64_t outer, int64_t channels, int64_t inner, float *robust,
    float *means, float *variances) {
    int64_t stride = channels * inner;
    if (inner == 1) {
#pragma omp parallel for schedule(static) if (outer * stride > GRAIN)
        for (int64_t c = 0; c < channels; c += BLOCK)
            robust_means_of_columns(
                x + c, outer, stride, channels - c < BLOCK ? channels - c : BLOCK,
                robust + c, variances ? means + c : 0, variances ? variances + c : 0);
        return;
    }
#pragma omp parallel for schedule(static) if (outer * stride > GRAIN)
    for (int64_t c = 0; c < channels; ++c) {
        const float *own = x + c * inner;
        float mean = channel_mean(sum_of, own, outer, stride, inner, 0.0f, 0.0f);
        if (variances) {
            means[c] = mean;
            variances[c] =
                channel_mean(sum_of_squares, own, outer, stride, inner, mean, 0.0f);
        }
        for (int step = 0; step < 2; ++step) {
            float reach =
                channel_mean(sum_of_distances, own, outer, stride, inner, mean, 0.0f);
            mean = channel_mean(
                sum_of_near, own, outer, stride, inner, mean - reach, mean + reach);
        }
        robust[c] = mean;
    }
}
