// Sizes and offsets of kernels.h's structures, for native.py to compare its own with.

#include "kernels.h"

#include <stddef.h>

#define AT(S, member) (i64) offsetof(S, member)

static const i64 LAYOUT[] = {
    sizeof(Mask), AT(Mask, rows), AT(Mask, key), AT(Mask, threshold), AT(Mask, scale),
    sizeof(QuantizedMatrix), AT(QuantizedMatrix, kind), AT(QuantizedMatrix, rows), AT(QuantizedMatrix, row_bytes),
    AT(QuantizedMatrix, data), AT(QuantizedMatrix, order), AT(QuantizedMatrix, scales),
    sizeof(LazyInt8), AT(LazyInt8, parts), AT(LazyInt8, N), AT(LazyInt8, K), AT(LazyInt8, part),
    AT(LazyInt8, channel_scale), AT(LazyInt8, inverse),
    sizeof(Segment), AT(Segment, from), AT(Segment, to), AT(Segment, b), AT(Segment, n), AT(Segment, np), AT(Segment, at),
    sizeof(Int8Input), AT(Int8Input, T), AT(Int8Input, K), AT(Int8Input, Kp), AT(Int8Input, group), AT(Int8Input, groups),
    AT(Int8Input, x), AT(Int8Input, channel_scale), AT(Int8Input, q), AT(Int8Input, scale), AT(Int8Input, sum),
    AT(Int8Input, segments), AT(Int8Input, Z), AT(Int8Input, segment), AT(Int8Input, z), AT(Int8Input, n_outliers),
    AT(Int8Input, outliers_at), AT(Int8Input, outliers), AT(Int8Input, mask),
    sizeof(Int8Entropy), AT(Int8Entropy, T), AT(Int8Entropy, V), AT(Int8Entropy, Vp), AT(Int8Entropy, group),
    AT(Int8Entropy, groups), AT(Int8Entropy, passes), AT(Int8Entropy, logits), AT(Int8Entropy, targets),
    AT(Int8Entropy, channel_scale), AT(Int8Entropy, q), AT(Int8Entropy, scale), AT(Int8Entropy, sum),
    AT(Int8Entropy, loss), AT(Int8Entropy, weight),
    sizeof(Int8Product), AT(Int8Product, T), AT(Int8Product, K), AT(Int8Product, N), AT(Int8Product, group),
    AT(Int8Product, groups), AT(Int8Product, q), AT(Int8Product, scale), AT(Int8Product, sum), AT(Int8Product, w),
    AT(Int8Product, lazy), AT(Int8Product, backward), AT(Int8Product, channel_scale), AT(Int8Product, z),
    AT(Int8Product, own), AT(Int8Product, common), AT(Int8Product, Z), AT(Int8Product, n_own), AT(Int8Product, n_common),
    AT(Int8Product, common_at), AT(Int8Product, at), AT(Int8Product, mask), AT(Int8Product, bias), AT(Int8Product, y),
    sizeof(Attention), AT(Attention, T), AT(Attention, H), AT(Attention, K), AT(Attention, d), AT(Attention, P),
    AT(Attention, n), AT(Attention, qs), AT(Attention, ks), AT(Attention, ps), AT(Attention, window),
    AT(Attention, bounds), AT(Attention, q), AT(Attention, k), AT(Attention, v), AT(Attention, pk), AT(Attention, pv),
    AT(Attention, scale), AT(Attention, cap),
};

const i64 *kernels_layout(i64 *n) {
  *n = sizeof(LAYOUT) / sizeof(*LAYOUT);
  return LAYOUT;
}
