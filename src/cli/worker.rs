//! `advisor worker`: one candidate, on command of a parent process (hidden).

use super::Exit;
use crate::{harness, workload::AnyWork};

pub fn run() -> anyhow::Result<Exit> {
    // A parent that was killed leaves no work behind: a training would go on for minutes and disturb whoever measures next.
    harness::serve(&mut AnyWork::default(), std::io::stdin(), std::io::stdout().lock(), || std::process::exit(0));
    Ok(Exit::Done)
}
