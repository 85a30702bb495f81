//! Images in a border of zeros, in buffers of each thread.

use std::cell::RefCell;

thread_local! {
    /// For a padded image, and, while that is in use, for the gradient of one.
    pub(super) static PADDED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Calls `f` with the image in a border of zeros, which takes buffer `which`.
pub(super) fn with_padded(
    which: usize,
    x: &[f32],
    size: [usize; 2],
    channels: usize,
    pads: [usize; 4],
    f: impl FnOnce(&[f32]),
) {
    if pads == [0; 4] {
        return f(x);
    }
    let mut padded = PADDED.with_borrow_mut(|buffers| std::mem::take(&mut buffers[which]));
    pad(x, size, channels, pads, &mut padded);
    f(&padded);
    PADDED.with_borrow_mut(|buffers| buffers[which] = padded);
}

fn pad(x: &[f32], [_, width]: [usize; 2], channels: usize, pads: [usize; 4], to: &mut Vec<f32>) {
    let [top, left, bottom, right] = pads.map(|p| p * channels);
    let row = width * channels;
    let full = row + left + right;
    let full_zeros = |n: usize| n / channels * full;
    to.clear();
    to.reserve(full_zeros(top + bottom) + x.len() / row.max(1) * full);
    to.resize(full_zeros(top), 0.0);
    for x in x.chunks_exact(row) {
        to.resize(to.len() + left, 0.0);
        to.extend_from_slice(x);
        to.resize(to.len() + right, 0.0);
    }
    to.resize(to.len() + full_zeros(bottom), 0.0);
}
