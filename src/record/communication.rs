//! What exchanges between ranks take on a machine, as raw as it was measured; kept for predictions.

use serde::{Deserialize, Serialize};

/// Version of the file of kept figures; another one is not read.
pub const COMMUNICATION_VERSION: u32 = 1;

/// The file of kept figures: the latest run of each host, transport and number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommunicationFile {
    pub schema_version: u32,
    pub runs: Vec<CommunicationRun>,
}

/// One run among some ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommunicationRun {
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: u64,
    pub advisor_version: String,
    /// `threads`, or what the MPI library says of itself.
    pub transport: String,
    pub ranks: usize,
    /// The host of each rank.
    pub hosts: Vec<String>,
    /// Measured in the same run on the first host: bytes read and written a second by all cores that copy.
    pub copy_bytes_per_s: Option<f64>,
    pub rows: Vec<CommunicationRow>,
}

/// One exchange at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommunicationRow {
    /// `all_reduce`, `reduce_scatter`, `all_gather`, `send_receive`.
    pub operation: String,
    /// The whole message: what is summed, what is gathered, what is sent.
    pub bytes: u64,
    /// Seconds of one exchange, each the mean of `repeats` in a row.
    pub samples_s: Vec<f64>,
    pub repeats: u64,
    pub median_s: f64,
    /// Bytes that memory must read and write for it, over all ranks: every input once, every output once.
    pub moved_bytes: u64,
}

impl CommunicationRow {
    /// Message bytes a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.median_s
    }

    /// Of the time that copying alone would take, how much it took: 1 is as fast as memory allows.
    pub fn share_of_copy(&self, copy_bytes_per_s: f64) -> f64 {
        self.moved_bytes as f64 / self.median_s / copy_bytes_per_s
    }
}
