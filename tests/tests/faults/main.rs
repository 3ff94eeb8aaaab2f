//! The failure sweep: every call of every sequence fails in every way, and everything is back as it was.
//!
//! `DMASPACE_FAULTS=put_a_run/vtd-type1/3:FailAfter:EIO+4:FailBefore:ENOENT cargo test --test faults -- --nocapture`
//! plays one case alone; the beginning of a case's name plays all that begin so.

mod guest;
mod host_configs;
mod sequences;

use std::io::Write as _;
use std::time::Instant;

use dmaspace_tests::faults::{FaultOutcome, Tally, sweep};

#[test]
fn every_call_of_every_sequence_fails_in_every_way() {
    let only = std::env::var("DMASPACE_FAULTS").unwrap_or_default();
    let begun = Instant::now();
    let sequences = sequences::all();
    let tally = sweep(&sequences, &only);
    // Past the capture of the test harness: the numbers are wanted when all is well, too.
    let (sequences, cases) = (sequences.len(), tally.cases());
    let Tally { single, double, lasting, .. } = &tally;
    let report = format!(
        "{sequences} sequences, {cases} cases in {:.1?}: {single} with one fault, {double} with two, {lasting} with \
         one that lasts\n\
         {:?}\n",
        begun.elapsed(),
        tally.outcomes,
    );
    std::io::stderr().write_all(report.as_bytes()).expect("standard error");
    let shown: Vec<_> = tally.failures.iter().take(40).map(String::as_str).collect();
    assert!(shown.is_empty(), "{} cases failed, among them:\n{}", tally.failures.len(), shown.join("\n"));
    if only.is_empty() {
        assert_eq!(tally.uncovered(), [""; 0], "requests that were not injected in these modes");
        assert!(cases >= 20_000, "only {cases} cases");
        let seen = [
            FaultOutcome::Hidden,
            FaultOutcome::Undone,
            FaultOutcome::Fenced,
            FaultOutcome::Held,
            FaultOutcome::Undetectable,
        ];
        assert!(seen.iter().all(|outcome| tally.outcomes.contains_key(outcome)), "{:?}", tally.outcomes);
    }
}
