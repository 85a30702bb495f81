//! Panels of convolutions of any stride, a run of an output row at a time.

use super::ConvGeometry;
use crate::kernels::cpu::simd::{LANES, Simd, first};

/// A convolution packed by output rows.
#[derive(Debug)]
pub(super) struct Strided {
    geometry: ConvGeometry,
    /// By kernel column: output columns whose input lies inside the row.
    inside: Vec<std::ops::Range<usize>>,
}

impl Strided {
    pub(super) fn new(geometry: ConvGeometry) -> Strided {
        let g = &geometry;
        let inside = (0..g.kernel[1]).map(|kx| {
            let at = |o: usize| (o * g.strides[1] + kx * g.dilations[1]).wrapping_sub(g.pads[1]);
            let first = (0..g.output[1]).find(|&o| at(o) < g.input[1]);
            let count = (0..g.output[1]).filter(|&o| at(o) < g.input[1]).count();
            first.map_or(0..0, |first| first..first + count)
        });
        Strided {
            inside: inside.collect(),
            geometry,
        }
    }

    /// Packs `count` output pixels from `column` on, for the inner rows `inner`.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Simd>(
        &self,
        x: *const f32,
        inner: std::ops::Range<usize>,
        column: usize,
        count: usize,
        panel: *mut f32,
        width: usize,
    ) {
        let g = &self.geometry;
        let ([h, w], [_, ow]) = (g.input, g.output);
        let positions = g.kernel[0] * g.kernel[1];
        let (mut channel, position) = (inner.start / positions, inner.start % positions);
        let (mut ky, mut kx) = (position / g.kernel[1], position % g.kernel[1]);
        let start = (column / ow, column % ow);
        for row in 0..inner.len() {
            let dy = (ky * g.dilations[0]).wrapping_sub(g.pads[0]);
            let dx = (kx * g.dilations[1]).wrapping_sub(g.pads[1]);
            let inside = &self.inside[kx];
            // SAFETY: only pixels inside the channel's plane are read, only `count` columns written.
            unsafe {
                let plane = x.add(channel * h * w);
                let out = panel.add(row * width);
                for v in 0..count.div_ceil(LANES) {
                    S::store(out.add(v * LANES), S::splat(0.0));
                }
                let (mut oy, mut ox) = start;
                let mut done = 0;
                while done < count {
                    let len = (ow - ox).min(count - done);
                    let y = (oy * g.strides[0]).wrapping_add(dy);
                    let (from, to) = (inside.start.max(ox), inside.end.min(ox + len));
                    if y < h && from < to {
                        let source = plane.add(y * w + (from * g.strides[1]).wrapping_add(dx));
                        let out = out.add(done + from - ox);
                        copy_strided::<S>(source, g.strides[1], to - from, out);
                    }
                    done += len;
                    (oy, ox) = (oy + 1, 0);
                }
            }
            kx += 1;
            if kx == g.kernel[1] {
                (ky, kx) = (ky + 1, 0);
                if ky == g.kernel[0] {
                    (channel, ky) = (channel + 1, 0);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn copy_strided<S: Simd>(source: *const f32, stride: usize, len: usize, out: *mut f32) {
    // SAFETY: the caller gives `(len - 1) * stride + 1` readable and `len` writable elements.
    unsafe {
        let mut i = 0;
        match stride {
            1 => {
                while i + LANES <= len {
                    S::store(out.add(i), S::load(source.add(i)));
                    i += LANES;
                }
                let mask = first(len - i);
                if i < len {
                    S::store_mask(out.add(i), S::load_mask(source.add(i), mask), mask);
                }
            }
            2 => {
                while i + LANES <= len {
                    S::store(out.add(i), S::load_even(source.add(2 * i), LANES));
                    i += LANES;
                }
                let n = len - i;
                if n > 0 {
                    S::store_mask(out.add(i), S::load_even(source.add(2 * i), n), first(n));
                }
            }
            _ => (0..len).for_each(|j| *out.add(j) = *source.add(j * stride)),
        }
    }
}
