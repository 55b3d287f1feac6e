//! Looks after groups of devices while the host waits for them: where a rank is gone, or the library finds an error, what is under way is
//! given up, so that waits end; whoever waited then asks `Watch::trouble` whether what he has got is worth anything.

use super::machine::DeviceGroup;
use crate::backend::{CollectiveError, Links};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often it looks: as often as ranks that are processes listen for news of others.
const LOOK: Duration = Duration::from_millis(20);

/// How long the library's error waits for word of the rank that is its reason: a rank that leaves gives its groups up at once, and says so
/// to processes within two of the times above.
const NEWS: Duration = Duration::from_millis(500);

struct Watched {
    links: Links,
    groups: Vec<Arc<dyn DeviceGroup>>,
    trouble: OnceLock<CollectiveError>,
    is_ending: AtomicBool,
}

impl Watched {
    /// The rank that has left, where one has.
    fn news(&self) -> Option<CollectiveError> {
        let start = Instant::now();
        loop {
            match self.links.trouble() {
                None if start.elapsed() < NEWS => std::thread::sleep(Duration::from_millis(5)),
                found => return found,
            }
        }
    }

    /// Gives all groups up where there is a reason to.
    fn look(&self) {
        if self.trouble.get().is_some() {
            return;
        }
        let of_library = || {
            let failed = self.groups.iter().find_map(|group| group.check().err());
            failed.map(|error| CollectiveError::Transport(error.to_string()))
        };
        let found = self.links.trouble().or_else(|| of_library().map(|error| self.news().unwrap_or(error)));
        if let Some(found) = found {
            self.trouble.set(found).ok();
            self.groups.iter().for_each(|group| group.give_up());
        }
    }
}

/// A thread that looks after groups until it is dropped.
pub(super) struct Watch {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(links: &Links, groups: Vec<Arc<dyn DeviceGroup>>) -> std::io::Result<Watch> {
        let watched = Watched { links: links.clone(), groups, trouble: OnceLock::new(), is_ending: AtomicBool::new(false) };
        let watched = Arc::new(watched);
        let looking = watched.clone();
        let look = move || {
            while !looking.is_ending.load(Ordering::Acquire) {
                looking.look();
                std::thread::park_timeout(LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("watch over exchanges".into()).spawn(look)?;
        Ok(Watch { watched, thread: Some(thread) })
    }

    /// Why exchanges came to nothing, where they did.
    pub fn trouble(&self) -> Option<CollectiveError> {
        self.watched.trouble.get().cloned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.is_ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
        // To leave a group in good order may mean to wait for others.
        self.watched.look();
    }
}
