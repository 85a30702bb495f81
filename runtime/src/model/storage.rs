//! Which encoding a weight is stored in, and what that takes.

use super::bitmask::Bitmask;
use super::weight::{Encoding, Weight, is_zero};

/// An encoding, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every value.
    Dense,
    /// The non-zeros and a mask.
    Bitmask,
    /// Two values of each four columns and a mask.
    TwoFour,
}

impl Storage {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::Dense => "dense",
            Storage::Bitmask => "bitmask",
            Storage::TwoFour => "2:4",
        }
    }
}

impl Weight {
    /// How the weight is stored.
    pub fn storage(&self) -> Storage {
        match self.encoding() {
            Encoding::Dense(_) => Storage::Dense,
            Encoding::Bitmask(b) if b.is_two_four() => Storage::TwoFour,
            Encoding::Bitmask(_) => Storage::Bitmask,
        }
    }

    /// Bytes of a weight of this shape and floating-point dtype with so many non-zeros, stored so.
    pub fn bytes_as(&self, storage: Storage, nonzeros: usize) -> usize {
        let ((rows, cols), size) = (self.matrix(), self.dtype().size());
        match storage {
            Storage::Dense => self.numel() * size,
            Storage::Bitmask => nonzeros * size + rows * (cols.div_ceil(8) + 8),
            Storage::TwoFour => rows * (cols / 2 * size + cols.div_ceil(8)),
        }
    }

    /// The best storage of a weight of this shape and dtype with so many non-zeros, which may
    /// [lie 2:4](Weight::is_two_four).
    ///
    /// It is the smallest. A weight of 16 bits is executed as it is stored, and an expansion has to be
    /// paid for: a mask must save a tenth of its bytes, which is one zero in six.
    pub fn best_storage(&self, nonzeros: usize, two_four: bool) -> Storage {
        let bytes = |s: Storage| self.bytes_as(s, nonzeros);
        let groups = self.matrix().1.is_multiple_of(4);
        let sparse = match two_four && groups && bytes(Storage::TwoFour) < bytes(Storage::Bitmask) {
            true => Storage::TwoFour,
            false => Storage::Bitmask,
        };
        let least = match self.dtype().size() {
            2 => bytes(Storage::Dense) / 10,
            _ => 0,
        };
        match self.dtype().is_float() && bytes(sparse) + least < bytes(Storage::Dense) {
            true => sparse,
            false => Storage::Dense,
        }
    }

    /// The same weight in its best storage; one with scales, or not of a floating-point dtype, as it is.
    pub fn stored_best(&self) -> Weight {
        if !self.dtype().is_float() {
            return self.clone();
        }
        match self.best_storage(self.count_nonzero(), self.is_two_four()) {
            Storage::Dense => self.decode(),
            Storage::Bitmask => self.decode().encode(),
            Storage::TwoFour => self.encode_two_four().unwrap_or_else(|_| self.clone()),
        }
    }

    /// The same weight, stored so.
    ///
    /// # Errors
    /// As [`Weight::encode_two_four`]; another storage is always possible.
    pub fn store_as(&self, storage: Storage) -> Result<Weight, String> {
        match storage {
            Storage::Dense => Ok(self.decode()),
            Storage::Bitmask => Ok(self.decode().encode()),
            Storage::TwoFour => self.encode_two_four(),
        }
    }

    /// Whether the weight is of a floating-point dtype, its columns are groups of four, and of each four at
    /// most two are not zero (of a bitmask: are stored).
    pub fn is_two_four(&self) -> bool {
        let (_, cols) = self.matrix();
        if !self.dtype().is_float() || cols == 0 || !cols.is_multiple_of(4) {
            return false;
        }
        match self.encoding() {
            Encoding::Dense(data) => {
                let size = self.dtype().size();
                let kept = |g: &[u8]| {
                    let elements = g.chunks_exact(size);
                    elements.filter(|e| !is_zero(self.dtype(), e)).count()
                };
                data.chunks_exact(4 * size).all(|g| kept(g) <= 2)
            }
            Encoding::Bitmask(b) => {
                let few =
                    |byte: &u8| (byte & 15).count_ones() <= 2 && (byte >> 4).count_ones() <= 2;
                b.is_two_four() || b.mask.iter().all(few)
            }
        }
    }

    /// The same weight stored 2:4; where fewer than two of four columns are not zero the first zeros are stored
    /// with them, as +0. A weight that is stored so already comes back as it is.
    ///
    /// # Errors
    /// When the dtype is no floating-point type, the columns are no groups of four, or more than two of four
    /// are not zero: says where.
    pub fn encode_two_four(&self) -> Result<Weight, String> {
        if self.storage() == Storage::TwoFour {
            return Ok(self.clone());
        }
        let ((rows, cols), dtype) = (self.matrix(), self.dtype());
        let dense = self.decode();
        let Encoding::Dense(data) = dense.encoding() else {
            return Err("does not decode".into());
        };
        if !dtype.is_float() || cols == 0 || !cols.is_multiple_of(4) {
            return Err(format!(
                "a weight of {dtype} with {cols} columns is not stored 2:4"
            ));
        }
        let (size, stride) = (dtype.size(), cols.div_ceil(8));
        let mut mask = vec![0u8; rows * stride];
        let mut values = Vec::with_capacity(data.len() / 2);
        for (i, group) in data.chunks_exact(4 * size).enumerate() {
            let (r, g) = (i / (cols / 4), i % (cols / 4));
            let elements = || group.chunks_exact(size).enumerate();
            let zero = |c: usize| is_zero(dtype, &group[c * size..(c + 1) * size]);
            let nonzeros = (0..4).filter(|&c| !zero(c)).count();
            if nonzeros > 2 {
                let from = 4 * g;
                return Err(format!(
                    "row {r} has {nonzeros} non-zeros in columns {from} to {}, 2:4 has two",
                    from + 3
                ));
            }
            let mut zeros = 2 - nonzeros;
            for (c, element) in elements() {
                let kept = !zero(c);
                if kept {
                    values.extend_from_slice(element);
                } else if zeros > 0 {
                    zeros -= 1;
                    values.resize(values.len() + size, 0);
                } else {
                    continue;
                }
                mask[r * stride + g / 2] |= 1 << (g % 2 * 4 + c);
            }
        }
        let bitmask = Bitmask {
            rows,
            cols,
            values: values.into(),
            mask: mask.into(),
            row_offsets: None,
        };
        Weight::bitmask(self.shape().to_vec(), dtype, bitmask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    /// Groups with two, one and no non-zeros, and a half byte at the end of each row.
    const ROWS: [[f32; 12]; 2] = [
        [1., 0., 0., 2., 0., 3., 0., 0., 0., 0., 4., 5.],
        [0., 0., 0., 0., -0., 6., 7., 0., f32::NAN, 0., 0., 8.],
    ];

    #[test]
    fn two_of_four_are_stored_and_come_back() {
        let dense = Weight::from_f32(&[2, 12], ROWS.as_flattened());
        assert!(dense.is_two_four() && dense.encode().is_two_four());
        let stored = dense.encode_two_four().unwrap();
        let Encoding::Bitmask(b) = stored.encoding() else {
            panic!("not encoded")
        };
        assert_eq!(b.mask[..], [0b0011_1001, 0b1100, 0b0110_0011, 0b1001]);
        let values = stored.stored_f32().unwrap();
        assert_eq!(values[..10], [1., 2., 0., 3., 4., 5., 0., 0., 6., 7.]);
        assert!(values[10].is_nan() && values[11] == 8.0);
        assert_eq!((b.row_start(0), b.row_start(1)), (0, 6));
        assert_eq!(stored.byte_len(), stored.bytes_as(Storage::TwoFour, 0));
        let bits = |w: &Weight| w.to_f32().unwrap().into_iter().map(f32::to_bits);
        let want = ROWS.as_flattened().iter().map(|v| match *v {
            0.0 => 0,
            v => v.to_bits(),
        });
        assert!(bits(&stored).eq(want));
        for other in [dense.encode(), stored.clone()] {
            let again = other.store_as(Storage::TwoFour).unwrap();
            assert!(bits(&again).eq(bits(&stored)));
            assert_eq!(again.storage(), Storage::TwoFour);
        }
        assert_eq!(
            stored.to_dtype(DType::F16).unwrap().storage(),
            Storage::TwoFour
        );
        assert_eq!(
            stored.store_as(Storage::Bitmask).unwrap().storage(),
            Storage::Bitmask
        );
    }

    #[test]
    fn what_is_not_two_of_four_is_refused_with_its_place() {
        let error = |shape: &[usize], values: &[f32]| {
            let weight = Weight::from_f32(shape, values);
            assert!(!weight.is_two_four() && !weight.encode().is_two_four());
            weight.encode_two_four().unwrap_err()
        };
        let mut three = ROWS;
        three[1][0] = 1.0;
        three[1][6] = 0.0;
        three[1][4..7].fill(2.0);
        let three = error(&[2, 12], three.as_flattened());
        assert!(
            three.contains("row 1 has 3 non-zeros in columns 4 to 7"),
            "{three}"
        );
        assert!(error(&[1, 6], &[0.0; 6]).contains("6 columns"));
        assert!(error(&[3, 0], &[]).contains("0 columns"));
    }

    #[test]
    fn masks_that_do_not_keep_two_are_refused_with_their_place() {
        let stored = Weight::from_f32(&[2, 12], ROWS.as_flattened());
        let stored = stored.encode_two_four().unwrap();
        let Encoding::Bitmask(good) = stored.encoding().clone() else {
            panic!("not encoded")
        };
        let with = |f: &dyn Fn(&mut Bitmask)| {
            let mut b = good.clone();
            f(&mut b);
            Weight::bitmask(vec![b.rows, b.cols], DType::F32, b).unwrap_err()
        };
        let mask = |at: usize, byte: u8| {
            with(&|b: &mut Bitmask| {
                let mut mask = b.mask.to_vec();
                mask[at] = byte;
                b.mask = mask.into();
            })
        };
        let error = mask(2, 0b0111_0011);
        assert!(error.contains("row 1 keeps 3 of columns 4 to 7"), "{error}");
        let error = mask(1, 0b0100);
        assert!(
            error.contains("row 0 keeps 1 of columns 8 to 11"),
            "{error}"
        );
        let error = mask(1, 0b1_1100);
        assert!(error.contains("behind column 12"), "{error}");
        let error = with(&|b| b.values = vec![0; 44].into());
        assert!(
            error.contains("44 bytes of values, the mask counts 12"),
            "{error}"
        );
        let error = with(&|b| (b.cols, b.rows) = (10, 2));
        assert!(error.contains("10 columns"), "{error}");
        let error = with(&|b| b.cols = 20);
        assert!(error.contains("[2, 20] needs 6"), "{error}");
    }

    #[test]
    fn the_smallest_storage_is_the_best() {
        let weight = |cols| Weight::from_f32(&[8, cols], &vec![1.0; 8 * cols]);
        let wide = weight(64);
        assert_eq!(wide.best_storage(256, true), Storage::TwoFour);
        assert_eq!(wide.best_storage(256, false), Storage::Bitmask);
        // 16 values of 4 bytes are as many as the offsets of eight rows.
        assert_eq!(wide.best_storage(240, true), Storage::Bitmask);
        assert_eq!(wide.best_storage(512, false), Storage::Dense);
        let half = wide.to_dtype(DType::BF16).unwrap();
        assert_eq!(half.best_storage(256, true), Storage::TwoFour);
        assert_eq!(half.best_storage(430, false), Storage::Dense);
        let ints = Weight::dense(vec![4], DType::I64, vec![0; 32].into()).unwrap();
        assert_eq!(ints.best_storage(0, false), Storage::Dense);
        let kept: Vec<f32> = (0..512).map(|i| [1.0, 0.0][i % 2]).collect();
        let kept = Weight::from_f32(&[8, 64], &kept).stored_best();
        assert_eq!(kept.storage(), Storage::TwoFour);
        assert_eq!(kept.decode().stored_best().storage(), Storage::TwoFour);
    }
}
