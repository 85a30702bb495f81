//! Aligned text tables and numbers for people.

use indicatif::{DecimalBytes, HumanCount};

/// How the cells of a column stand.
#[derive(Clone, Copy)]
pub enum Align {
    /// At the left.
    Left,
    /// At the right.
    Right,
}

/// Lines of cells, each column as wide as its widest cell, two spaces between.
#[derive(Default)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a line of headings.
    pub fn new<const N: usize>(columns: [(&str, Align); N]) -> Table {
        Table {
            columns: columns.iter().map(|c| c.1).collect(),
            rows: vec![columns.iter().map(|c| c.0.to_owned()).collect()],
        }
    }

    /// Adds a line; cells beyond the columns are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl ToString>) {
        let cells = cells.into_iter().map(|c| c.to_string());
        self.rows.push(cells.take(self.columns.len()).collect());
    }

    /// The table as text, one line per row.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(column));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, (align, &width)) in row.iter().zip(self.columns.iter().zip(&widths)) {
                line += &match align {
                    Align::Left => format!("{cell:<width$}  "),
                    Align::Right => format!("{cell:>width$}  "),
                };
            }
            text += line.trim_end();
            text += "\n";
        }
        text
    }
}

/// What a cut network has left: names, and numbers before and after; those that are not there are dashes.
pub fn left<const N: usize>(rows: [(&str, u64, Option<u64>); N]) -> String {
    let mut table = Table::new([
        ("", Align::Left),
        ("before", Align::Right),
        ("after", Align::Right),
        ("left", Align::Right),
    ]);
    for (what, before, after) in rows {
        table.row([
            what.to_owned(),
            count(before),
            after.map_or("-".into(), count),
            after.map_or("-".into(), |n| percent(ratio(n, before))),
        ]);
    }
    table.render()
}

/// `1,234,567`.
pub fn count(n: impl TryInto<u64>) -> String {
    HumanCount(n.try_into().unwrap_or(u64::MAX)).to_string()
}

/// `1.23 MB`, in powers of 1000.
pub fn bytes(n: impl TryInto<u64>) -> String {
    DecimalBytes(n.try_into().unwrap_or(u64::MAX)).to_string()
}

/// A share as `12.34 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A shape as `64x3x3x3`.
pub fn shape(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    dims.join("x")
}

/// `part / whole` as a share of the whole, 0 of nothing.
pub fn ratio(part: impl TryInto<u64>, whole: impl TryInto<u64>) -> f64 {
    let part = part.try_into().unwrap_or(u64::MAX) as f64;
    part / whole.try_into().unwrap_or(u64::MAX).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([("a", Align::Left), ("n", Align::Right)]);
        table.row(["long name", "1"]);
        table.row(["é", "12,345"]);
        assert_eq!(
            table.render(),
            "a               n\nlong name       1\né          12,345\n"
        );
    }
}
