//! Stamp files, as they are replayed: alone, and as those of several servers (one after each empty line).
#![no_main]

use libfuzzer_sys::fuzz_target;
use radclock::ensemble::{Ensemble, MAX_SERVERS};
use radclock::replay::{replay, replay_several, stamps};
use radclock::stamp::Stamp;
use radclock::sync::{SyncParams, Synchroniser};

fuzz_target!(|text: &str| {
    let params = SyncParams::default();
    let sync = Synchroniser::new(params.clone()).expect("the default holds");
    for line in replay(text.lines(), sync) {
        match line {
            Ok(line) => assert!(line.starts_with("# ") || line.split(' ').count() == 3, "{line}"),
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
    let traces: Vec<Vec<Stamp>> = text
        .split("\n\n")
        .take(MAX_SERVERS)
        .map(|trace| stamps(trace.lines()).filter_map(Result::ok).collect())
        .collect();
    for stamp in traces.iter().flatten() {
        assert_eq!(stamp.to_string().parse::<Stamp>().expect("its own line").ta, stamp.ta);
    }
    let count = traces.iter().map(Vec::len).sum();
    let ensemble = Ensemble::new(&params, traces.len()).expect("the default holds");
    assert_eq!(replay_several(&traces, ensemble).count(), count);
});
