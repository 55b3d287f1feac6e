//! Both ends of a worker: the loop that serves requests, and the handle that asks, a process of the candidate's own or ranks of a launch.

use super::{
    protocol::{Request, Response},
    run::Control,
};
use crate::record::Candidate;
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

/// What a worker can do; `workload` implements it.
pub trait Work {
    /// Answers one request, or says why this candidate cannot go on.
    fn answer(&mut self, request: Request) -> Result<Response, String>;
}

/// Serves requests from `input` until it ends or the work fails. `at_end` is called as soon as the input ends, in the middle of an
/// answer too: a parent that is gone is the end of the work.
pub fn serve(
    work: &mut dyn Work,
    input: impl Read + Send + 'static,
    mut output: impl Write,
    at_end: impl FnOnce() + Send + 'static,
) {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(input).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        at_end();
    });
    for line in lines {
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => work.answer(request),
            Err(error) => Err(format!("a request that is none: {error}")),
        };
        let failed = answer.is_err();
        let response = answer.unwrap_or_else(|reason| Response::Failed { reason });
        let mut text = serde_json::to_string(&response).expect("responses are plain data");
        text.push('\n');
        if output.write_all(text.as_bytes()).and_then(|()| output.flush()).is_err() || failed {
            return;
        }
    }
}

/// Why a worker gave no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Silence {
    /// The run was told to stop.
    Interrupted,
    /// The row's reason.
    Failed(String),
}

/// Processes that a launcher started beside this one, to be ranks of candidates.
pub trait Ranks {
    /// Ranks for a candidate; what hinders them is the answer to its first request.
    fn start(&self, candidate: &Candidate) -> Box<dyn Line>;
}

/// A candidate among the ranks of a launch; dropping it frees them.
pub trait Line {
    /// Hands a request over.
    fn ask(&mut self, request: &Request);
    /// The answer, or why the candidate cannot go on; `None` where there is none within `patience`.
    fn answer(&mut self, patience: Duration) -> Option<Result<Response, String>>;
}

/// A running worker.
pub(super) enum Worker {
    Process(Process),
    Ranks(Box<dyn Line>),
}

impl Worker {
    /// Asks and waits for the answer, at most `limit`.
    pub fn ask(&mut self, request: &Request, limit: Duration, control: &Control) -> Result<Response, Silence> {
        let line = match self {
            Worker::Process(process) => return process.ask(request, limit, control),
            Worker::Ranks(line) => line,
        };
        line.ask(request);
        let deadline = Instant::now() + limit;
        loop {
            match line.answer(PAUSE) {
                Some(answer) => return answer.map_err(Silence::Failed),
                None if control.is_interrupted() => return Err(Silence::Interrupted),
                None if Instant::now() >= deadline => {
                    return Err(Silence::Failed(format!("no answer of its ranks within {} s", limit.as_secs())));
                }
                None => {}
            }
        }
    }
}

/// Longest wait at a time, so that a Ctrl-C is heard.
const PAUSE: Duration = Duration::from_millis(50);

/// Lines of a worker's standard error that are kept for its reason.
const LAST_LINES: usize = 5;

/// A worker process.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<std::io::Result<String>>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts `program worker` in a process group of its own, so that a Ctrl-C at the terminal reaches the parent alone.
    pub fn start(program: &Path) -> std::io::Result<Process> {
        let mut command = Command::new(program);
        // A panic's message is the row's reason; a backtrace would push it out of the lines that are kept.
        command.env("RUST_BACKTRACE", "0");
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = last_words.clone();
        std::thread::spawn(move || keep_last_lines(stderr, &kept));
        let stdin = child.stdin.take();
        Ok(Process { child, stdin, lines, last_words })
    }

    /// Asks and waits for the answer, at most `limit`.
    pub fn ask(&mut self, request: &Request, limit: Duration, control: &Control) -> Result<Response, Silence> {
        let mut text = serde_json::to_string(request).expect("requests are plain data");
        text.push('\n');
        let sent = self.stdin.as_mut().map(|stdin| stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.death());
        }
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(PAUSE) {
                Ok(Ok(line)) => {
                    return match serde_json::from_str(&line) {
                        Ok(Response::Failed { reason }) => Err(Silence::Failed(reason)),
                        Ok(response) => Ok(response),
                        Err(error) => Err(Silence::Failed(format!("its worker said what is no answer: {error}"))),
                    };
                }
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(self.death()),
                Err(RecvTimeoutError::Timeout) if control.is_interrupted() => {
                    self.kill();
                    return Err(Silence::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    self.kill();
                    return Err(Silence::Failed(format!("no answer within {} s, so it was stopped", limit.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Why the process is gone.
    fn death(&mut self) -> Silence {
        self.stdin = None;
        let status = self.child.wait();
        // The reader of standard error ends with the process; give it a moment to hand over the last line.
        std::thread::sleep(Duration::from_millis(20));
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let end = status.map_or_else(|e| e.to_string(), describe);
        let said = if words.is_empty() { String::new() } else { format!(": {}", words.join(" | ")) };
        Silence::Failed(format!("its worker {end}{said}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An idle worker ends when its input does.
        self.stdin = None;
        let patience = Instant::now() + Duration::from_millis(500);
        while Instant::now() < patience {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill();
    }
}

fn keep_last_lines(stderr: impl Read, kept: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LAST_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            6 => " (abort)",
            9 => " (killed: the system may have run out of memory)",
            11 => " (invalid memory access)",
            _ => "",
        };
        return format!("ended by signal {signal}{name}");
    }
    format!("ended with code {}", status.code().unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(usize);

    impl Work for Echo {
        fn answer(&mut self, request: Request) -> Result<Response, String> {
            self.0 += 1;
            match request {
                Request::Train { .. } => Err("cannot train".into()),
                _ => Ok(Response::Prepared { busy_s: 0.5 }),
            }
        }
    }

    #[test]
    fn requests_are_answered_line_by_line_until_one_fails() {
        let ask = |request: &Request| serde_json::to_string(request).unwrap();
        let input = [ask(&Request::Describe), ask(&Request::Train { seed: 1 }), ask(&Request::Describe)].join("\n");
        let (mut output, mut work) = (Vec::new(), Echo(0));
        serve(&mut work, std::io::Cursor::new(input.into_bytes()), &mut output, || ());
        let answers: Vec<Response> =
            String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers, [Response::Prepared { busy_s: 0.5 }, Response::Failed { reason: "cannot train".into() }]);
        assert_eq!(work.0, 2);
    }
}
