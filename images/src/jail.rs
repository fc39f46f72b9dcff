//! The jail in which programs read images that nobody vouches for.
//!
//! A process confines itself before it becomes the program (`trivet confine`, which only we start), so
//! that no code runs between a fork and an exec. Inside there are:
//! - of files, the image alone, as a handle, and what `/usr` and `/lib` hold for anyone (Landlock);
//! - no sockets but the one that it is given, no other processes, no mounts, no keys (seccomp, Landlock);
//! - no handles but these: what our own parents left open is shed before;
//! - no privileges, not root's either, and no way to get any;
//! - a bound on memory, time, files and, unless it writes the image, on what it can write: nothing.

mod confine;
mod system_calls;

pub use confine::{ConfineError, confine, shed_handles};

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Under which name the program finds the image.
pub const IMAGE_PATH: &str = "/proc/self/fd/10";

/// What is let in, and how much of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jail {
    /// The image.
    pub image: PathBuf,
    /// Whether the program writes it.
    pub writable: bool,
    /// Whether standard input is a listening socket, which the program gets as systemd passes one.
    pub socket: bool,
    /// Of address space.
    pub memory_bytes_max: u64,
    /// Of processor time.
    pub cpu_seconds_max: u64,
    /// The process that started it, whose end is its end.
    pub parent: u32,
}

const WRITABLE: &str = "--writable";
const SOCKET: &str = "--socket";

/// A jail's description that makes no sense: only we write them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a jail is IMAGE MEMORY-BYTES CPU-SECONDS PARENT [--writable] [--socket] -- PROGRAM ARGUMENTS")]
pub struct BadDescription;

impl Jail {
    /// The command that runs `program` in it; `launcher` is `trivet confine`.
    #[must_use]
    pub fn command(&self, launcher: &Launcher, program: &Path, arguments: &[String]) -> Command {
        let mut command = Command::new(&launcher.program);
        command.args(&launcher.arguments).arg(&self.image);
        command.arg(self.memory_bytes_max.to_string()).arg(self.cpu_seconds_max.to_string());
        command.arg(self.parent.to_string());
        command.args(self.writable.then_some(WRITABLE)).args(self.socket.then_some(SOCKET));
        command.arg("--").arg(program).args(arguments).env_clear().stdin(Stdio::null());
        command
    }

    /// The same, serving clients of a socket that listens already.
    #[must_use]
    pub fn server(
        &self,
        launcher: &Launcher,
        program: &Path,
        arguments: &[String],
        listener: OwnedFd,
    ) -> Command {
        let mut command = Self { socket: true, ..self.clone() }.command(launcher, program, arguments);
        command.stdin(listener);
        command
    }

    /// Reads back what [`Jail::command`] wrote: the jail, and what to run in it.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(words: &[OsString]) -> Result<(Self, &[OsString]), BadDescription> {
        let end = words.iter().position(|word| word == "--").ok_or(BadDescription)?;
        let (jail, program) = (&words[..end], &words[end + 1..]);
        let [image, memory, cpu, parent, options @ ..] = jail else { return Err(BadDescription) };
        let number =
            |word: &OsString| word.to_str().and_then(|word| word.parse::<u64>().ok()).ok_or(BadDescription);
        if program.is_empty() || options.iter().any(|option| option != WRITABLE && option != SOCKET) {
            return Err(BadDescription);
        }
        let jail = Self {
            image: image.into(),
            writable: options.iter().any(|option| option == WRITABLE),
            socket: options.iter().any(|option| option == SOCKET),
            memory_bytes_max: number(memory)?,
            cpu_seconds_max: number(cpu)?,
            parent: u32::try_from(number(parent)?).or(Err(BadDescription))?,
        };
        Ok((jail, program))
    }
}

/// How a process is started that confines itself: `trivet confine`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Launcher {
    /// The binary.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_come_back_as_they_were() {
        let launcher = Launcher { program: "/bin/trivet".into(), arguments: vec!["confine".to_owned()] };
        for (writable, socket) in [(false, false), (true, true)] {
            let image = PathBuf::from("/a/--writable");
            let jail =
                Jail { image, writable, socket, memory_bytes_max: 1 << 40, cpu_seconds_max: 7, parent: 9 };
            let command = jail.command(&launcher, Path::new("/usr/bin/x"), &["--".to_owned()]);
            let words: Vec<OsString> = command.get_args().skip(1).map(OsString::from).collect();
            let (parsed, program) = Jail::parse(&words).unwrap();
            assert_eq!((parsed, program.to_vec()), (jail, vec!["/usr/bin/x".into(), "--".into()]));
        }
        for bad in [
            &["a", "1", "2", "3"][..],
            &["a", "1", "2", "3", "--"],
            &["a", "1", "2", "--", "x"],
            &["a", "b", "2", "3", "--", "x"],
            &["a", "1", "2", "-3", "--", "x"],
        ] {
            let words: Vec<OsString> = bad.iter().map(OsString::from).collect();
            assert_eq!(Jail::parse(&words), Err(BadDescription));
        }
    }
}
