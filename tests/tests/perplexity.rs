//! Perplexity of a small decoder: against logits of whole windows, by chunk and by token.

use lacuna::model::Symbols;
use lacuna::{Session, SessionOptions, TensorView};
use lacuna_prune::perplexity::{PerplexityOptions, perplexity};
use lacuna_tests::language::{VOCABULARY, decoder};

/// The mean negative log likelihood of tokens `first..` of a window, from one run of a session.
fn whole(ids: &[i64], first: usize) -> f64 {
    let options = SessionOptions {
        symbols: Symbols::from([("T".into(), ids.len())]),
        ..SessionOptions::default()
    };
    let mut session = Session::new(&decoder(), options).unwrap();
    let logits = session
        .run(&[TensorView::i64(&[1, ids.len()], ids)])
        .unwrap()
        .remove(0)
        .data;
    let mut sum = 0.0;
    for next in first..ids.len() {
        let row: Vec<f64> = logits[(next - 1) * VOCABULARY..][..VOCABULARY]
            .iter()
            .map(|&l| f64::from(l))
            .collect();
        let total: f64 = row.iter().map(|l| l.exp()).sum();
        sum -= row[ids[next] as usize] - total.ln();
    }
    sum
}

#[test]
fn perplexity_is_that_of_whole_windows_by_chunk_and_by_token() {
    let tokens: Vec<u32> = (0..100)
        .map(|i| (i * 29 + i / 7) as u32 % VOCABULARY as u32)
        .collect();
    let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
    for (window, stride) in [(20, 20), (20, 7), (2, 1)] {
        let starts = (0..=tokens.len() - window).step_by(stride);
        let (mut sum, mut count) = (0.0, 0);
        for start in starts {
            let first = if start == 0 { 1 } else { window - stride }.max(1);
            sum += whole(&ids[start..start + window], first);
            count += window - first;
        }
        for by_token in [false, true] {
            let options = PerplexityOptions {
                window,
                stride,
                by_token,
                round_inputs: Some(false),
                ..PerplexityOptions::default()
            };
            let got = perplexity(&decoder(), &tokens, &options, &mut |_, _| {}).unwrap();
            assert_eq!(got.predicted, count);
            let expect = sum / count as f64;
            assert!(
                (got.nll - expect).abs() < 1e-4 * expect,
                "{window} {stride} {by_token}: {} for {expect}",
                got.nll
            );
        }
    }
}
