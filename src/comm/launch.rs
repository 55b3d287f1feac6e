//! Whether a launcher (`mpirun`, `srun`) started this process as one of several.

/// A launcher's word.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Processes that it started.
    pub processes: usize,
    /// Names under which the MPI library may be found, the likeliest first.
    pub libraries: Vec<String>,
}

const OPEN_MPI: [&str; 2] = ["libmpi.so.40", "libmpi.so"];
const MPICH: [&str; 4] = ["libmpich.so.12", "libmpi.so.12", "libmpich.so", "libmpi.so"];

impl Launch {
    /// From the variables that launchers set; `None` for a process that was started alone. Open MPI's `mpirun` says
    /// `OMPI_COMM_WORLD_SIZE`, those of MPICH's kin `PMI_SIZE`, `srun` the tasks of its step (a batch script is in no step).
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
        let number = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok());
        let step = || variable("SLURM_STEP_ID").and(number("SLURM_STEP_NUM_TASKS"));
        let open_mpi = number("OMPI_COMM_WORLD_SIZE");
        let processes = open_mpi.or_else(|| number("PMI_SIZE")).or_else(step).filter(|processes| *processes > 1)?;
        let likely = match (open_mpi.is_some(), variable("PMI_SIZE").is_some()) {
            (true, _) => [&OPEN_MPI[..], &MPICH[..]],
            (_, true) => [&MPICH[..], &OPEN_MPI[..]],
            // By srun: whichever is there.
            _ => [&OPEN_MPI[..], &MPICH[..]],
        };
        let libraries = match variable("ADVISOR_MPI_LIBRARY") {
            Some(named) => vec![named],
            None => likely.concat().into_iter().map(str::to_string).collect(),
        };
        Some(Launch { processes, libraries })
    }

    /// Of this process.
    pub fn of_this_process() -> Option<Launch> {
        Launch::read(|name| std::env::var(name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Option<Launch> {
        Launch::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_known_by_what_they_set() {
        assert_eq!(read(&[]), None);
        let open_mpi = read(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "1"), ("PMIX_RANK", "1")]).unwrap();
        assert_eq!((open_mpi.processes, open_mpi.libraries[0].as_str()), (4, "libmpi.so.40"));
        let mpich = read(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]).unwrap();
        assert_eq!((mpich.processes, mpich.libraries[0].as_str()), (2, "libmpich.so.12"));
        let slurm = read(&[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_PROCID", "3")]).unwrap();
        assert_eq!(slurm.processes, 8);
        let named = read(&[("PMI_SIZE", "2"), ("ADVISOR_MPI_LIBRARY", "/opt/mpi/libmpi.so")]).unwrap();
        assert_eq!(named.libraries, ["/opt/mpi/libmpi.so"]);
    }

    #[test]
    fn one_process_and_a_batch_script_are_started_alone() {
        assert_eq!(read(&[("OMPI_COMM_WORLD_SIZE", "1")]), None);
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "8")]), None);
    }
}
