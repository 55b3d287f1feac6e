//! `advisor worker`: one candidate, on command of a parent process (hidden).

use super::Exit;
use crate::{harness, workload::AnyWork};

pub fn run() -> anyhow::Result<Exit> {
    harness::serve(&mut AnyWork::default(), std::io::stdin().lock(), std::io::stdout().lock());
    Ok(Exit::Done)
}
