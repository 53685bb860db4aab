//! Which rank this process is, from what its launcher put into the environment.

use std::net::TcpListener;

use crate::error::{Error, Result};

/// This process's place among the ranks of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process on its machine.
    pub local_rank: usize,
    /// Processes on this machine.
    pub local_size: usize,
    /// Whether the ranks of this machine were given one environment, and so see the same devices: torchrun and
    /// `trainer launch` start them so; a batch system may show each its own.
    pub same_devices: bool,
    /// Cores that the launcher gave this process alone, where it says so.
    pub(crate) cores: Option<usize>,
    /// Where the store is.
    pub(crate) store: (String, u16),
    /// Whether this process serves it.
    pub(crate) serve: bool,
    /// Goes before every key: a restarted run must not read its predecessor's, nor another one's that is at the
    /// same port.
    pub(crate) prefix: String,
}

impl Place {
    /// The only process there is.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            same_devices: true,
            cores: None,
            store: (String::new(), 0),
            serve: false,
            prefix: String::new(),
        }
    }

    /// The places of `size` ranks that are threads of this process, for tests and for trying things out.
    ///
    /// # Panics
    /// If this machine has no free port.
    #[must_use]
    pub fn threads(size: usize) -> Vec<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let free = free.expect("a free port");
        let place = |rank| Self {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            same_devices: true,
            cores: None,
            store: ("127.0.0.1".to_owned(), free.port()),
            serve: rank == 0,
            prefix: prefix("threads", ""),
        };
        (0..size).map(place).collect()
    }

    /// From torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, …), else from
    /// those of `srun`, else alone.
    ///
    /// # Errors
    /// [`Error::Environment`] naming the variable that is missing or wrong.
    pub fn from_env() -> Result<Self> {
        Self::read(&|name| std::env::var(name).ok())
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let names = if variable("RANK").is_some() || variable("WORLD_SIZE").is_some() {
            ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
        } else if variable("SLURM_STEP_NUM_TASKS").is_some_and(|tasks| tasks != "1") {
            ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]
        } else {
            return Ok(Self::alone());
        };
        let [rank, size, local_rank, local_size] = names;
        let rank = required(variable, rank)?;
        let size = required(variable, size)?;
        if rank >= size {
            return Err(wrong(&format!(
                "{} = {rank} is not below {} = {size}",
                names[0], names[1]
            )));
        }
        if size == 1 {
            return Ok(Self::alone());
        }
        let local_rank = optional(variable, local_rank)?.unwrap_or(0);
        let local_size = optional(variable, local_size)?.unwrap_or(1).max(local_rank + 1);
        let by_slurm = names[0] == "SLURM_PROCID";
        // torchrun below a SLURM task has the variable too, for all its ranks together.
        let cores = if by_slurm { optional(variable, "SLURM_CPUS_PER_TASK")? } else { None };
        let store = match variable("SLURM_STEP_NODELIST") {
            Some(nodes) if by_slurm => (
                variable("MASTER_ADDR").unwrap_or_else(|| first_node(&nodes)),
                port(variable)?.unwrap_or_else(|| slurm_port(variable)),
            ),
            _ => (
                variable("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?,
                port(variable)?.ok_or_else(|| missing("MASTER_PORT"))?,
            ),
        };
        let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let word = |name| variable(name).unwrap_or_default();
        let prefix = if by_slurm {
            let id = format!("{}.{}", word("SLURM_JOB_ID"), word("SLURM_STEP_ID"));
            prefix(&id, &word("SLURM_RESTART_COUNT"))
        } else {
            prefix(&word("TORCHELASTIC_RUN_ID"), &word("TORCHELASTIC_RESTART_COUNT"))
        };
        let serve = rank == 0 && !agent;
        let same_devices = !by_slurm && variable("TORCHELASTIC_RUN_ID").is_some();
        Ok(Self { rank, size, local_rank, local_size, same_devices, cores, store, serve, prefix })
    }
}

/// What goes before the keys in the store of run `id`, so that no other run and no other `attempt` at it reads them.
#[must_use]
pub fn prefix(id: &str, attempt: &str) -> String {
    format!("bigbigan/{id}/{attempt}/")
}

fn wrong(problem: &str) -> Error {
    Error::Environment(problem.to_owned())
}

fn missing(name: &str) -> Error {
    wrong(&format!("{name} is not set; start with torchrun, srun or trainer launch"))
}

fn optional(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let Some(text) = variable(name) else { return Ok(None) };
    // SLURM writes 4(x2) for four tasks on each of two machines.
    let digits = text.split(['(', ',']).next().unwrap_or_default();
    match digits.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong(&format!("{name} = {text:?} is not a number"))),
    }
}

fn required(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<usize> {
    optional(variable, name)?.ok_or_else(|| missing(name))
}

fn port(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<u16>> {
    let Some(text) = variable("MASTER_PORT") else { return Ok(None) };
    match text.parse() {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(wrong(&format!("MASTER_PORT = {text:?} is not a port, 1 to 65535"))),
    }
}

/// A port of its own for every job step, above those that services take.
fn slurm_port(variable: &dyn Fn(&str) -> Option<String>) -> u16 {
    let number = |name| variable(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (job, step) = (number("SLURM_JOB_ID"), number("SLURM_STEP_ID"));
    15_000 + ((job.wrapping_mul(31).wrapping_add(step)) % 10_000) as u16
}

/// The first machine of `node[03-05,9],other`.
fn first_node(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (head, rest) = list.split_at(end);
    match rest.strip_prefix('[') {
        None => head.to_owned(),
        Some(rest) => {
            let number = rest.split(['-', ',', ']']).next().unwrap_or_default();
            let tail = rest.split_once(']').map_or("", |(_, tail)| tail);
            let tail = tail.split(',').next().unwrap_or_default();
            format!("{head}{number}{tail}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Place> {
        Place::read(&|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_variables_or_with_one_rank_a_process_is_alone() {
        assert_eq!(read(&[]).unwrap(), Place::alone());
        let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(read(&one).unwrap(), Place::alone());
        // Inside an allocation but not under srun.
        assert_eq!(read(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]).unwrap(), Place::alone());
    }

    #[test]
    fn torchrun_s_agent_serves_the_store_where_it_says_so() {
        let mut all = vec![
            ("RANK", "0"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RUN_ID", "r"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
            ("SLURM_CPUS_PER_TASK", "96"),
        ];
        let place = read(&all).unwrap();
        assert!(place.serve && place.same_devices);
        assert_eq!((place.local_size, place.prefix.as_str()), (2, "bigbigan/r/3/"));
        assert_eq!(place.cores, None, "of all ranks below the task");
        assert_eq!(place.store, ("10.0.0.1".to_owned(), 29500));
        all.push(("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert!(!read(&all).unwrap().serve);
    }

    #[test]
    fn slurm_s_variables_say_where_rank_0_is() {
        let all = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
            ("SLURM_STEP_NODELIST", "gpu[03-04,7].cluster"),
            ("SLURM_JOB_ID", "4242"),
            ("SLURM_STEP_ID", "3"),
            ("SLURM_CPUS_PER_TASK", "12"),
        ];
        let place = read(&all).unwrap();
        assert_eq!(place.cores, Some(12));
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (5, 8, 1, 4));
        assert_eq!(place.store.0, "gpu03.cluster");
        assert_eq!(place.prefix, "bigbigan/4242.3//", "no other job's or step's");
        assert!((15_000..25_000).contains(&place.store.1) && !place.serve);
        assert!(!place.same_devices, "a task may see its own alone");
        for (list, first) in
            [("a", "a"), ("a,b", "a"), ("n[1,3]", "n1"), ("n-[008-010],m", "n-008")]
        {
            assert_eq!(first_node(list), first);
        }
    }

    #[test]
    fn a_missing_or_wrong_variable_is_named() {
        let good = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "29500"),
        ];
        assert!(read(&good).is_ok());
        for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
            let without: Vec<_> = good.into_iter().filter(|(n, _)| *n != name).collect();
            let error = read(&without).unwrap_err();
            assert!(error.to_string().contains(name) && error.is_input(), "{error}");
        }
        for (name, value) in
            [("RANK", "2"), ("RANK", "x"), ("WORLD_SIZE", "-1"), ("MASTER_PORT", "0")]
        {
            let changed = good.map(|(n, v)| (n, if n == name { value } else { v }));
            let error = read(&changed).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
