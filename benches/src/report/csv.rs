//! The layers for a spreadsheet.

use crate::Report;

/// One line a layer under a line of names; empty cells were not measured.
pub fn csv(report: &Report) -> String {
    let mut out = String::from(
        "node,op,fused,shape,kernel,reason,residency,density,weight_bytes,activation_bytes,macs,\
         dense_macs,ms,share,gflops,gbs,limit_ms,of_limit,dense_ms,dense_kernel\n",
    );
    for l in &report.layers {
        let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
        let cells = [
            quote(&l.node),
            quote(&l.op),
            quote(&l.fused.join(" ")),
            quote(&l.shape),
            quote(&l.kernel),
            quote(&l.reason),
            quote(&l.residency),
            l.density.to_string(),
            l.weight_bytes.to_string(),
            l.activation_bytes.to_string(),
            l.macs.to_string(),
            l.dense_macs.to_string(),
            l.ms.to_string(),
            l.share.to_string(),
            l.gflops.to_string(),
            l.gbs.to_string(),
            number(l.limit_ms),
            number(l.of_limit),
            number(l.dense_ms),
            quote(l.dense_kernel.as_deref().unwrap_or("")),
        ];
        out.push_str(&cells.join(","));
        out.push('\n');
    }
    out
}

/// A cell, in quotes where RFC 4180 wants them.
fn quote(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn cells_are_quoted_and_every_line_has_as_many() {
        let text = csv(&sample());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].starts_with("\"block <1> & \"\"co\"\"\",Conv,"),
            "{}",
            lines[2]
        );
        let reason = "\"density 0.10 < 0.30, 4 times fewer products\"";
        assert!(lines[1].contains(reason), "{}", lines[1]);
        let columns = lines[0].split(',').count();
        // The reason's comma is inside quotes.
        assert_eq!(lines[1].split(',').count(), columns + 1);
    }
}
