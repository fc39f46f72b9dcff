//! What the bench is asked to do.

use std::path::PathBuf;

const USAGE: &str = "xtask bench
  --size BYTES[K|M|G]  size of the volume and of each raw file (2G)
  --runtime SECONDS    of each measurement (10)
  --rounds N           measurements of each side; the median counts (3)
  --only TEXT          only workloads whose name contains TEXT
  --dir DIR            a folder on the disk to measure (/var/tmp); a subfolder is made and removed
  --bin PATH           the trivet binary (next to this program)
  --write FILE         keep the table in FILE, between the bench markers
  --uri URI --pids A,B measure this NBD server and these processes instead of starting a cluster";

/// Options, with their defaults.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) size_bytes: u64,
    pub(crate) runtime: u32,
    pub(crate) rounds: u32,
    pub(crate) only: String,
    pub(crate) directory: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) write: Option<PathBuf>,
    pub(crate) server: Option<(String, Vec<u32>)>,
    /// The name of the cluster's folder.
    pub(crate) folder: &'static str,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut options = Self {
            size_bytes: 2 << 30,
            runtime: 10,
            rounds: 3,
            only: String::new(),
            directory: PathBuf::from("/var/tmp"),
            binary: me.with_file_name("trivet"),
            write: None,
            server: None,
            folder: "cluster",
        };
        let (mut uri, mut pids) = (None, Vec::new());
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"));
            match name.as_str() {
                "--size" => options.size_bytes = parse_size(&value()?)?,
                "--runtime" => options.runtime = parse(&name, &value()?)?,
                "--rounds" => options.rounds = parse(&name, &value()?)?,
                "--only" => options.only = value()?,
                "--dir" => options.directory = value()?.into(),
                "--bin" => options.binary = value()?.into(),
                "--write" => options.write = Some(value()?.into()),
                "--uri" => uri = Some(value()?),
                "--pids" => {
                    let list = value()?;
                    let parsed: Result<_, String> = list.split(',').map(|pid| parse(&name, pid)).collect();
                    pids = parsed?;
                }
                _ => return Err(format!("unknown option {name}\n{USAGE}")),
            }
        }
        options.server = uri.map(|uri| (uri, pids));
        if options.write.is_some() && (options.server.is_some() || !options.only.is_empty()) {
            return Err(
                "--write keeps a whole table of this program's own volume: not with --uri or --only".into()
            );
        }
        Ok(options)
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("{name} {text}: {e}\n{USAGE}"))
}

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = parse::<u64>("--size", digits)? << shift;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
        return Err(format!("--size {text}: a multiple of 1M is needed"));
    }
    Ok(bytes)
}
