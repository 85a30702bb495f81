//! A search from its first round to its last, of parts of any kind.

use super::{Event, Judge, Levels, Round, Search, SearchSettings, Space, Teacher};
use super::{claim, digest, own_windows, remove};
use crate::spent::Spent;
use crate::{Calibration, Error, Progress, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What a search goes over: parts of a decoder that can be made at several levels.
pub(crate) trait Parts {
    /// What a round finds of a part, and the next one looks around.
    type Choice;
    /// The levels of a part in a round.
    type Ladder: Serialize;
    /// A part at a level.
    type Rung;

    /// The parts of each block.
    fn by_block(&self) -> Vec<Vec<usize>>;

    /// Levels around what was found, of every part.
    fn ladders(
        &self,
        found: &[Self::Choice],
        settings: &SearchSettings,
        round: usize,
    ) -> Vec<Self::Ladder>;

    /// What a level of a ladder is.
    fn choice(&self, ladder: &Self::Ladder, level: usize) -> Self::Choice;

    /// Bytes that all levels take on disk.
    fn bytes(&self, ladders: &[Self::Ladder]) -> u64;

    /// Makes all levels, or takes those that `folder` has.
    ///
    /// # Errors
    /// When a part cannot be pruned, or a file not be written.
    fn supernet(
        &self,
        ladders: &[Self::Ladder],
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<Self::Rung>>>;

    /// What candidates are made of.
    fn space<'a>(&'a self, ladders: &[Self::Ladder], supernet: &'a [Vec<Self::Rung>]) -> Space<'a>;

    /// The levels that a round starts from.
    fn start(&self, ladders: &[Self::Ladder], supernet: &[Vec<Self::Rung>]) -> Levels;

    /// The least and the most that candidates cost, where the first has `start`.
    fn range(&self, start: f64) -> (f64, f64);
}

/// A search.
pub(crate) struct Rounds<'a> {
    pub settings: &'a SearchSettings,
    pub calibration: &'a Calibration,
    pub tokens: &'a [u32],
    pub teacher: Teacher<'a>,
    /// What the settings of the run are known by.
    pub hash: &'a str,
    /// Where supernets, state and log are kept.
    pub work: &'a Path,
    pub spent: &'a Spent,
}

impl Rounds<'_> {
    /// What is found of each part, starting around `found`.
    ///
    /// # Errors
    /// As [`Judge::new`] and [`Parts::supernet`], when `work` holds another search, the text is too short, or a file cannot
    /// be written.
    pub fn run<P: Parts>(
        self,
        parts: &P,
        mut found: Vec<P::Choice>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(Vec<P::Choice>, Vec<Round>)> {
        let Rounds {
            settings,
            calibration,
            work,
            ..
        } = self;
        settings.check()?;
        let of = self.teacher.digest;
        claim(work, &digest(&(self.hash, of))?)?;
        let drawn = own_windows(calibration, settings.windows, self.tokens)?;
        let path = work.join("teacher.safetensors");
        let judge = self.spent.time("teacher", || {
            let mut say = |p| tell(Event::Progress(p));
            Judge::new(
                self.teacher,
                parts.by_block(),
                &drawn,
                settings.top,
                &path,
                &mut say,
            )
        })?;
        let mut rounds = Vec::new();
        for round in 1..=settings.rounds {
            let ladders = parts.ladders(&found, settings, round - 1);
            let supernet_bytes = parts.bytes(&ladders);
            tell(Event::Supernet {
                round,
                bytes: supernet_bytes,
            });
            let folder = work.join(format!("round-{round}"));
            std::fs::create_dir_all(&folder).map_err(|source| Error::Io {
                path: folder.clone(),
                action: "write",
                source,
            })?;
            let supernet = parts.supernet(&ladders, &folder, &mut |p| tell(Event::Progress(p)))?;
            let space = parts.space(&ladders, &supernet);
            let start = parts.start(&ladders, &supernet);
            let generations = settings.evolution.generations;
            let searching = Instant::now();
            let state = Search {
                judge: &judge,
                space: &space,
                evolution: &settings.evolution,
                seed: calibration.seed,
                round,
                budget: parts.range(space.cost(&start)),
                state: work.join(format!("round-{round}.json")),
                log: work.join("evaluations.jsonl"),
            }
            .run(
                start,
                digest(&(self.hash, of, &ladders))?,
                &mut |done, best| {
                    tell(Event::Generation {
                        round: [round, settings.rounds],
                        generation: [done, generations],
                        best,
                    });
                },
            )?;
            self.spent.add("search", searching.elapsed().as_secs_f64());
            found = (state.parent.iter().zip(&ladders))
                .map(|(&level, ladder)| parts.choice(ladder, level))
                .collect();
            rounds.push(Round {
                supernet_bytes,
                history: state.history,
            });
            drop(space);
            drop(supernet);
            if round > 1 {
                remove(&work.join(format!("round-{}", round - 1)))?;
            }
        }
        Ok((found, rounds))
    }
}
