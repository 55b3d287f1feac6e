//! Launchers of MPI processes that are installed here.
#![allow(dead_code)]

use std::{
    fmt,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A library's own `mpirun`, or `srun`.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: &'static str,
    /// In front of the number of processes.
    arguments: &'static [&'static str],
    library: &'static str,
}

/// What a launch said, and how it ended.
pub struct Said {
    text: String,
    code: Option<i32>,
}

impl Said {
    pub fn is_done(&self) -> bool {
        self.code == Some(0)
    }

    pub fn code(&self) -> Option<i32> {
        self.code
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended with {:?}\n{}", self.code, self.text)
    }
}

impl Launcher {
    pub fn open_mpi() -> Option<Launcher> {
        let arguments = &["--allow-run-as-root", "--oversubscribe"];
        Launcher::find("Open MPI", &["Open MPI", "OpenRTE", "PRRTE"], &["mpirun.openmpi", "mpirun"], arguments)
    }

    pub fn mpich() -> Option<Launcher> {
        Launcher::find("MPICH", &["HYDRA"], &["mpirun.mpich", "mpiexec.hydra", "mpirun"], &[])
    }

    /// `srun` in a Slurm of its own (`scripts/slurm.sh`), once for each library that is installed and whose plug-in starts a task; none where
    /// there is no Slurm. A plug-in that is listed need not load: that of PMIx opens a library that Slurm's packages do not bring.
    pub fn slurm() -> Vec<Launcher> {
        const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/slurm.sh");
        let is_required = std::env::var_os("ADVISOR_REQUIRE_SLURM").is_some();
        let open_mpi = Launcher::open_mpi().map(|own| (&[SCRIPT, "srun", "--mpi=pmix"], own));
        let mpich = Launcher::mpich().map(|own| (&[SCRIPT, "srun", "--mpi=pmi2"], own));
        let mut found = Vec::new();
        for (arguments, own) in open_mpi.into_iter().chain(mpich) {
            let said = Command::new("bash").args(arguments).arg("true").output().unwrap();
            if said.status.success() {
                found.push(Launcher { program: "bash", arguments, library: own.library });
                continue;
            }
            let text = String::from_utf8_lossy(&said.stderr);
            assert!(!is_required, "`srun {}` starts no task: {text}", arguments[2]);
            println!("skipped: `srun {}` starts no task: {text}", arguments[2]);
        }
        found
    }

    /// The first of `programs` whose version has one of `words`.
    fn find(
        library: &'static str,
        words: &[&str],
        programs: &[&'static str],
        arguments: &'static [&'static str],
    ) -> Option<Launcher> {
        let has_word = |program: &&&str| {
            let said = Command::new(program).arg("--version").output();
            said.is_ok_and(|said| words.iter().any(|word| String::from_utf8_lossy(&said.stdout).contains(word)))
        };
        let found = programs.iter().find(has_word).map(|program| Launcher { program, arguments, library });
        if found.is_none() {
            assert!(std::env::var_os("ADVISOR_REQUIRE_MPI").is_none(), "{library} is not installed");
            println!("skipped: {library} is not installed");
        }
        found
    }

    /// What the library calls itself.
    pub fn library(&self) -> &'static str {
        self.library
    }

    fn command(&self, processes: usize, program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(self.program);
        command.args(self.arguments).arg("-n").arg(processes.to_string()).arg(program).args(arguments);
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts without waiting.
    pub fn start(&self, processes: usize, program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
        self.command(processes, program, arguments, variables).spawn().unwrap()
    }

    /// Runs to the end, or stops it after `limit`.
    pub fn run(&self, processes: usize, program: &Path, arguments: &[&str], variables: &[(&str, &str)], limit: Duration) -> Said {
        wait(self.start(processes, program, arguments, variables), limit)
    }
}

/// Waits for a launch, at most `limit`: then it is stopped, and so are the processes that it started.
pub fn wait(mut child: Child, limit: Duration) -> Said {
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).ok();
            text
        })
    };
    let out = read(Box::new(child.stdout.take().unwrap()));
    let err = read(Box::new(child.stderr.take().unwrap()));
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > limit {
            // The launcher passes it on.
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().ok();
            std::thread::sleep(Duration::from_secs(3));
            child.kill().ok();
            child.wait().ok();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Said { text: format!("{}{}", out.join().unwrap(), err.join().unwrap()), code }
}
