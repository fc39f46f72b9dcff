//! `trivet confine`: a process that confines itself, and then becomes QEMU's reader of an image.

use crate::failure::{Exit, Failure};
use clap::Args;
use std::ffi::OsString;
use std::process::Command;
use trivet_images::jail::{ConfineError, Jail, Launcher, confine, shed_handles};

/// Read an image in a jail
#[derive(Args, Debug)]
pub(crate) struct ConfineArgs {
    /// Handles that others left open are shed already
    #[arg(long, hide = true)]
    shed: bool,
    /// The jail, and what to run in it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<OsString>,
}

/// How [`run`] is started.
pub(super) fn launcher() -> Result<Launcher, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new("cannot read the image", error, "").exit(Exit::Machine))?;
    Ok(Launcher { program, arguments: vec!["confine".to_owned(), "--".to_owned()] })
}

pub(crate) fn run(arguments: &ConfineArgs) -> Result<(), Failure> {
    let (jail, program) = Jail::parse(&arguments.words)
        .map_err(|error| Failure::new("cannot make a jail", error, "").exit(Exit::Usage))?;
    let error = if arguments.shed {
        confine(&jail, program)
    } else {
        let mut again = Command::new(launcher()?.program);
        again.args(["confine", "--shed", "--"]).args(&arguments.words);
        shed_handles(again)
    };
    let next = match error {
        ConfineError::NoLandlock => "cat /sys/kernel/security/lsm shows what is enabled",
        _ => "",
    };
    Err(Failure::new(format!("cannot read {} in a jail", jail.image.display()), error, next)
        .exit(Exit::Machine))
}
