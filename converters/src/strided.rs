//! Walking the elements of a strided view.

/// The flat index of every element of a view, in row-major order.
///
/// The caller bounds the view: every index that `offset`, `shape` and `strides` reach is that of an
/// element, and the number of elements fits memory.
pub(crate) struct Walk<'a> {
    shape: &'a [usize],
    strides: Vec<isize>,
    index: Vec<usize>,
    at: isize,
    left: usize,
}

impl<'a> Walk<'a> {
    /// A walk over `shape`; strides count elements.
    pub fn new(offset: usize, shape: &'a [usize], strides: &[isize]) -> Walk<'a> {
        // An axis of size 1 is never stepped along, whatever its stride says.
        let step = |(&n, &s): (&usize, &isize)| if n == 1 { 0 } else { s };
        Walk {
            shape,
            strides: shape.iter().zip(strides).map(step).collect(),
            index: vec![0; shape.len()],
            at: offset as isize,
            left: shape.iter().product(),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let found = self.at as usize;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.at += self.strides[axis];
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.at -= self.strides[axis] * self.shape[axis] as isize;
            self.index[axis] = 0;
        }
        Some(found)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// The strides of a row-major array whose shape passes [`numel`].
pub(crate) fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
    }
    strides
}

/// The product of a shape. `None` when it overflows, be it only without the sizes that are 0, so
/// that no part of a shape that passes overflows.
pub(crate) fn numel(shape: &[usize]) -> Option<usize> {
    let nonzero = shape.iter().filter(|&&d| d != 0);
    let product = nonzero.copied().try_fold(1usize, usize::checked_mul)?;
    isize::try_from(product).ok()?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// The elements of `size` bytes at `indices`, one after the other.
pub(crate) fn pick(data: &[u8], size: usize, indices: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut out = Vec::with_capacity(indices.size_hint().0 * size);
    for i in indices {
        out.extend_from_slice(&data[i * size..(i + 1) * size]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_follows_strides_of_either_sign_and_of_zero() {
        let transposed: Vec<usize> = Walk::new(0, &[3, 2], &[1, 3]).collect();
        assert_eq!(transposed, [0, 3, 1, 4, 2, 5]);
        let reversed: Vec<usize> = Walk::new(5, &[2, 2], &[-3, -1]).collect();
        assert_eq!(reversed, [5, 4, 2, 1]);
        let repeated: Vec<usize> = Walk::new(0, &[2, 2], &[0, 1]).collect();
        assert_eq!(repeated, [0, 1, 0, 1]);
        assert_eq!(Walk::new(7, &[], &[]).collect::<Vec<_>>(), [7]);
        assert_eq!(Walk::new(0, &[2, 0], &[1, 1]).count(), 0);
        assert_eq!(
            Walk::new(3, &[1, 1], &[isize::MAX, isize::MAX]).collect::<Vec<_>>(),
            [3]
        );
    }
}
