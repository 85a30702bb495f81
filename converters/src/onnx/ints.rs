//! Integers that are known, or products of symbolic dimensions: what shape arithmetic works on.

use lacuna::model::Dim;
use std::fmt;
use std::rc::Rc;

/// The most symbols of one product.
const MAX_SYMBOLS: usize = 8;

/// An integer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Int {
    Known(i64),
    /// At least one symbol.
    Symbolic(Rc<Product>),
}

/// `factor` times every symbol; the symbols are sorted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Product {
    factor: i64,
    symbols: Vec<String>,
}

/// An integer tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ints {
    pub shape: Vec<usize>,
    pub items: Vec<Int>,
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Int::Known(n) => n.fmt(f),
            Int::Symbolic(p) if p.factor == 1 => f.write_str(&p.symbols.join("*")),
            Int::Symbolic(p) => write!(f, "{}*{}", p.factor, p.symbols.join("*")),
        }
    }
}

impl From<&Dim> for Int {
    fn from(dim: &Dim) -> Int {
        match dim {
            Dim::Fixed(n) => Int::Known(*n as i64),
            Dim::Symbol(s) => Int::new(1, vec![s.clone()]),
        }
    }
}

impl Int {
    fn new(factor: i64, symbols: Vec<String>) -> Int {
        if symbols.is_empty() || factor == 0 {
            Int::Known(factor)
        } else {
            Int::Symbolic(Rc::new(Product { factor, symbols }))
        }
    }

    fn parts(&self) -> (i64, &[String]) {
        match self {
            Int::Known(n) => (*n, &[]),
            Int::Symbolic(p) => (p.factor, &p.symbols),
        }
    }

    /// The value, when no symbol stands in it.
    pub fn known(&self) -> Option<i64> {
        match self {
            Int::Known(n) => Some(*n),
            Int::Symbolic(_) => None,
        }
    }

    /// `self * other`.
    pub fn mul(&self, other: &Int) -> Result<Int, String> {
        let ((a, left), (b, right)) = (self.parts(), other.parts());
        let factor = a.checked_mul(b).ok_or("shape arithmetic overflows")?;
        let mut symbols = [left, right].concat();
        if symbols.len() > MAX_SYMBOLS {
            return Err(format!("a product of {} symbols", symbols.len()));
        }
        symbols.sort_unstable();
        Ok(Int::new(factor, symbols))
    }

    /// `self / other`, which is exact when symbols are concerned and else rounds towards zero.
    pub fn div(&self, other: &Int) -> Result<Int, String> {
        let refuse = || format!("{self} / {other} is no whole number of known form");
        let ((a, left), (b, right)) = (self.parts(), other.parts());
        let mut symbols = left.to_vec();
        for s in right {
            let at = symbols.iter().position(|l| l == s).ok_or_else(refuse)?;
            symbols.remove(at);
        }
        let factor = a.checked_div(b).ok_or_else(refuse)?;
        if !left.is_empty() && a % b != 0 {
            return Err(refuse());
        }
        Ok(Int::new(factor, symbols))
    }

    /// `self + sign * other`.
    pub fn add(&self, other: &Int, sign: i64) -> Result<Int, String> {
        let ((a, left), (b, right)) = (self.parts(), other.parts());
        let symbols = match (a, b) {
            (_, 0) => left,
            (0, _) => right,
            _ if left == right => left,
            _ => return Err(format!("the sum of {self} and {other} has no known form")),
        };
        let factor = b.checked_mul(sign).and_then(|b| a.checked_add(b));
        let factor = factor.ok_or("shape arithmetic overflows")?;
        Ok(Int::new(factor, symbols.to_vec()))
    }
}

/// The product of integers.
pub(super) fn product<'i>(mut list: impl Iterator<Item = &'i Int>) -> Result<Int, String> {
    list.try_fold(Int::Known(1), |n, t| n.mul(t))
}

impl Ints {
    /// A list of known integers.
    pub fn known(&self) -> Option<Vec<i64>> {
        self.items.iter().map(Int::known).collect()
    }

    /// A list, as a shape is.
    pub fn list(items: Vec<Int>) -> Ints {
        Ints {
            shape: vec![items.len()],
            items,
        }
    }
}

/// The `shape` of a `Reshape` of `input` to `target`: sizes that the input has at the same place
/// become 0, one other symbolic size becomes -1.
pub(super) fn reshape_target(
    input: &[Dim],
    target: &[Int],
    allow_zero: bool,
) -> Result<Vec<i64>, String> {
    let input: Vec<Int> = input.iter().map(Int::from).collect();
    let inferred = Int::Known(-1);
    let mut target = target.to_vec();
    for (i, t) in target.iter_mut().enumerate() {
        if *t == Int::Known(0) {
            if allow_zero {
                return Err("a size of 0 (allowzero)".into());
            }
            let same = input.get(i).ok_or("a 0 behind the axes of the input")?;
            *t = same.clone();
        }
    }
    if let Some(at) = target.iter().position(|t| *t == inferred) {
        if target[at + 1..].contains(&inferred) {
            return Err("more than one -1".into());
        }
        let rest = target.iter().filter(|t| **t != inferred);
        let (all, rest) = (product(input.iter()), product(rest));
        if let (Ok(all), Ok(rest)) = (all, rest)
            && let Ok(size) = all.div(&rest)
            && rest.mul(&size) == Ok(all)
        {
            target[at] = size;
        }
    }
    let mut sizes = Vec::with_capacity(target.len());
    for (i, t) in target.iter().enumerate() {
        sizes.push(match t {
            Int::Known(n) => *n,
            symbolic if input.get(i) == Some(symbolic) => 0,
            _ => -1,
        });
    }
    if sizes.iter().filter(|&&n| n == -1).count() > 1 {
        let shown: Vec<String> = target.iter().map(Int::to_string).collect();
        return Err(format!(
            "the sizes [{}] are more than one symbol; give the input a fixed shape",
            shown.join(", ")
        ));
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n() -> Int {
        Int::from(&Dim::Symbol("N".into()))
    }

    #[test]
    fn products_of_symbols_multiply_divide_and_add() {
        let k = Int::Known;
        let n64 = n().mul(&k(64)).unwrap();
        assert_eq!(n64.to_string(), "64*N");
        assert_eq!(n64.div(&k(64)), Ok(n()));
        assert_eq!(n64.div(&n()), Ok(k(64)));
        assert_eq!(n().add(&n(), -1), Ok(k(0)));
        assert_eq!(n64.add(&n(), 1).unwrap().to_string(), "65*N");
        assert_eq!(k(-7).div(&k(2)), Ok(k(-3)));
        assert!(n().div(&k(2)).is_err());
        assert!(n().add(&k(1), 1).is_err());
        assert!(k(1).div(&k(0)).is_err());
        assert!(k(i64::MIN).div(&k(-1)).is_err());
        assert!(k(i64::MAX).mul(&k(2)).is_err());
        let mut power = n();
        for _ in 0..3 {
            power = power.mul(&power).unwrap();
        }
        assert!(power.mul(&power).is_err());
    }

    #[test]
    fn reshapes_copy_or_infer_their_symbols() {
        let k = Int::Known;
        let x = [Dim::Symbol("N".into()), Dim::Fixed(8), Dim::Fixed(2)];
        let to = |t: &[Int]| reshape_target(&x, t, false);
        assert_eq!(to(&[n(), k(-1)]), Ok(vec![0, 16]));
        assert_eq!(to(&[k(-1), k(16)]), Ok(vec![0, 16]));
        assert_eq!(to(&[k(0), k(4), k(4)]), Ok(vec![0, 4, 4]));
        assert_eq!(to(&[k(2), n(), k(8)]), Ok(vec![2, -1, 8]));
        assert_eq!(to(&[n().mul(&k(8)).unwrap(), k(2)]), Ok(vec![-1, 2]));
        assert_eq!(to(&[k(-1), n()]), Ok(vec![16, -1]));
        assert!(to(&[k(-1), k(-1)]).is_err());
        assert!(reshape_target(&x, &[k(0)], true).is_err());
        assert!(reshape_target(&[], &[k(0)], false).is_err());
    }
}
