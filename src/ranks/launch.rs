//! Which process of a run this is, from the variables that torchrun, accelerate and ms-swift set. Reads nothing else,
//! and connects to nobody.

use crate::error::{Error, Result, escaped};

/// Most processes of a run: each is connected with every other.
const MOST: usize = 256;
const REMEDY: &str = "start the ranks with `torchrun --no-python --nproc_per_node N qft train ...`, or set RANK, \
                      WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each; unset them to train alone";

/// One process of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// This process, from 0 (`RANK`).
    pub rank: usize,
    /// How many there are (`WORLD_SIZE`).
    pub count: usize,
    /// This process among those of its host, from 0 (`LOCAL_RANK`): the number of the GPU that it takes.
    pub local_rank: usize,
    /// How many its host runs (`LOCAL_WORLD_SIZE`), where the launcher says.
    pub local_count: Option<usize>,
    /// Where rank 0 waits for the others: a host's name or address (`MASTER_ADDR`) and a port. Empty if there is one
    /// process.
    pub host: String,
    /// See `host`. One beside `MASTER_PORT` where that one is taken by torchrun's own store.
    pub port: u16,
    /// What the user should know.
    pub note: Option<String>,
}

impl Default for Launch {
    fn default() -> Self {
        Self { rank: 0, count: 1, local_rank: 0, local_count: None, host: String::new(), port: 0, note: None }
    }
}

impl Launch {
    /// What this process's variables say.
    pub fn from_env() -> Result<Self> {
        Self::from(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// What variables say. Absent means alone, and so does a `RANK` or `LOCAL_RANK` of -1, as in transformers.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let text = |name| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let number = |name| text(name).map(|text| parse(name, &text, MOST)).transpose();
        let position = |name| if text(name).as_deref() == Some("-1") { Ok(None) } else { number(name) };
        let (rank, local_rank) = (position("RANK")?, position("LOCAL_RANK")?);
        let (count, local_count) = (number("WORLD_SIZE")?, number("LOCAL_WORLD_SIZE")?);
        for (name, count) in [("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", local_count)] {
            ensure(count != Some(0), || format!("{name} is 0, but must be at least 1"))?;
        }
        let Some(world) = count else {
            ensure(rank.unwrap_or(0) == 0, || format!("RANK is {}, but WORLD_SIZE is not set", rank.unwrap_or(0)))?;
            let note = text("NPROC_PER_NODE").filter(|processes| processes != "1").map(|processes| {
                let processes = escaped(&processes);
                format!(
                    "NPROC_PER_NODE is {processes}, but qft starts no processes and trains with one; start them with \
                     `torchrun --no-python --nproc_per_node {processes} qft train ...`"
                )
            });
            return Ok(Self { local_rank: local_rank.unwrap_or(0), local_count, note, ..Self::default() });
        };
        below("RANK", rank, "WORLD_SIZE", Some(world))?;
        below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_count)?;
        below("LOCAL_RANK", local_rank, "WORLD_SIZE", Some(world))?;
        ensure(local_count.is_none_or(|local| local <= world), || {
            format!("LOCAL_WORLD_SIZE is {}, but WORLD_SIZE is {world}", local_count.unwrap_or(0))
        })?;
        if world == 1 {
            return Ok(Self { local_rank: local_rank.unwrap_or(0), local_count, ..Self::default() });
        }
        let missing = |name| move || lacking(name, world);
        let rank = rank.ok_or_else(missing("RANK"))?;
        let local_rank = local_rank.ok_or_else(missing("LOCAL_RANK"))?;
        let host = text("MASTER_ADDR").ok_or_else(missing("MASTER_ADDR"))?;
        let port = text("MASTER_PORT").ok_or_else(missing("MASTER_PORT"))?;
        let port = parse("MASTER_PORT", &port, u16::MAX.into())? as u16;
        ensure(port != 0, || "MASTER_PORT is 0, which is not a port that others could connect to".to_owned())?;
        // torchrun's agent listens on MASTER_PORT itself, and says so: its workers are to use its store.
        let taken = text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|flag| flag.eq_ignore_ascii_case("true"));
        let port = if taken { port.checked_add(1).unwrap_or(port - 1) } else { port };
        Ok(Self { rank, count: world, local_rank, local_count, host, port, note: None })
    }
}

fn parse(name: &str, text: &str, most: usize) -> Result<usize> {
    text.parse().ok().filter(|number| *number <= most).ok_or_else(|| {
        Error::invalid(format!("{name} is {}, but must be a number up to {most}", escaped(text)), REMEDY)
    })
}

fn below(name: &str, position: Option<usize>, of: &str, count: Option<usize>) -> Result<()> {
    match (position, count) {
        (Some(position), Some(count)) if position >= count => {
            Err(Error::invalid(format!("{name} is {position}, but {of} is {count}: ranks count from 0"), REMEDY))
        }
        _ => Ok(()),
    }
}

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid(problem(), REMEDY)) }
}

fn lacking(name: &str, world: usize) -> Error {
    Error::invalid(format!("WORLD_SIZE is {world}, but {name} is not set"), REMEDY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Launch> {
        let find = |name: &str| variables.iter().find(|(given, _)| *given == name);
        Launch::from(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    const TWO: [(&str, &str); 6] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ];

    fn changed(name: &str, value: &str) -> Result<Launch> {
        let mut variables = TWO.to_vec();
        variables.push(("TORCHELASTIC_USE_AGENT_STORE", ""));
        for variable in &mut variables {
            if variable.0 == name {
                variable.1 = value;
            }
        }
        from(&variables)
    }

    #[test]
    fn takes_what_torchrun_sets() {
        let launch = from(&TWO).unwrap();
        let expected = Launch {
            rank: 1,
            count: 2,
            local_rank: 1,
            local_count: Some(2),
            host: "127.0.0.1".to_owned(),
            port: 29500,
            note: None,
        };
        assert_eq!(launch, expected);
        assert_eq!(changed("LOCAL_WORLD_SIZE", "").unwrap().local_count, None);
    }

    #[test]
    fn leaves_the_port_of_torchruns_store_alone() {
        assert_eq!(changed("TORCHELASTIC_USE_AGENT_STORE", "True").unwrap().port, 29501);
        assert_eq!(changed("TORCHELASTIC_USE_AGENT_STORE", "False").unwrap().port, 29500);
        let mut last = TWO.to_vec();
        last[5].1 = "65535";
        last.push(("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert_eq!(from(&last).unwrap().port, 65534);
    }

    #[test]
    fn is_alone_without_variables_or_with_a_world_of_one() {
        assert_eq!(from(&[]).unwrap(), Launch::default());
        assert_eq!(from(&[("RANK", "-1"), ("LOCAL_RANK", "-1"), ("WORLD_SIZE", "")]).unwrap(), Launch::default());
        assert_eq!(from(&[("WORLD_SIZE", "1"), ("RANK", "0"), ("MASTER_PORT", "none")]).unwrap(), Launch::default());
        assert_eq!(from(&[("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")]).unwrap(), Launch::default());
        let note = from(&[("NPROC_PER_NODE", "4")]).unwrap().note.unwrap();
        assert!(note.contains("torchrun --no-python --nproc_per_node 4"), "{note}");
        assert_eq!(from(&[("NPROC_PER_NODE", "1")]).unwrap().note, None);
    }

    #[test]
    fn refuses_what_does_not_fit_together() {
        let refused = [
            (changed("RANK", "2"), "RANK is 2, but WORLD_SIZE is 2"),
            (changed("RANK", "one"), "RANK is one"),
            (changed("RANK", "\u{1b}[2J"), "RANK is \\u{1b}[2J"),
            (changed("RANK", "-2"), "RANK is -2"),
            (changed("RANK", ""), "WORLD_SIZE is 2, but RANK is not set"),
            (changed("RANK", "-1"), "WORLD_SIZE is 2, but RANK is not set"),
            (changed("WORLD_SIZE", "0"), "WORLD_SIZE is 0"),
            (changed("WORLD_SIZE", "99999999999999999999"), "WORLD_SIZE is 99999999999999999999"),
            (changed("WORLD_SIZE", ""), "RANK is 1, but WORLD_SIZE is not set"),
            (changed("LOCAL_RANK", "2"), "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2"),
            (changed("LOCAL_RANK", ""), "LOCAL_RANK is not set"),
            (changed("LOCAL_WORLD_SIZE", "3"), "LOCAL_WORLD_SIZE is 3, but WORLD_SIZE is 2"),
            (changed("MASTER_ADDR", " "), "MASTER_ADDR is not set"),
            (changed("MASTER_PORT", ""), "MASTER_PORT is not set"),
            (changed("MASTER_PORT", "65536"), "MASTER_PORT is 65536"),
            (changed("MASTER_PORT", "0"), "MASTER_PORT is 0"),
        ];
        for (launch, problem) in refused {
            let message = launch.unwrap_err().to_string();
            assert!(message.contains(problem) && message.contains("remedy: start"), "{message}");
        }
    }
}
