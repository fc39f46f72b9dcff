//! The command lines of QEMU's tools.

use crate::format::Format;
use crate::jail::{IMAGE_PATH, Jail};
use std::path::{Path, PathBuf};

/// Says what an image is.
pub const INSPECTOR: &str = "qemu-img";
/// Serves an image's content over NBD.
pub const SERVER: &str = "qemu-nbd";

/// Enough for both; a reader of a well-made image uses a tenth.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Checking goes through all that an image says of where its data is.
const INSPECTION_SECONDS_MAX: u64 = 300;
/// Of processor time, for each GiB served: a hundred times of what decompressing takes.
const SECONDS_PER_GIB: u64 = 600;
const SERVING_SECONDS_MIN: u64 = 600;

/// Where a program of this name is, by `PATH`, which the jail does not have.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// To look at an image in; [`inspection`] are the inspector's arguments.
#[must_use]
pub fn inspection_jail(image: &Path) -> Jail {
    Jail {
        image: image.to_owned(),
        writable: false,
        socket: false,
        memory_bytes_max: MEMORY_BYTES_MAX,
        cpu_seconds_max: INSPECTION_SECONDS_MAX,
        parent: std::process::id(),
    }
}

/// Has the inspector describe the image without looking for its format, or at any other file.
#[must_use]
pub fn inspection(format: Format) -> Vec<String> {
    ["info", "--output=json", "-U", "-f", format.driver(), IMAGE_PATH].map(str::to_owned).to_vec()
}

/// Has the inspector check that what the image says of itself fits together, and that its data is there:
/// what is missing would be read as zeros.
#[must_use]
pub fn checking(format: Format) -> Vec<String> {
    ["check", "--output=json", "-U", "-f", format.driver(), IMAGE_PATH].map(str::to_owned).to_vec()
}

/// Exit codes of a check by which an image can be read: all is well, space is wasted, or the format has
/// nothing that could be checked beyond what opening it does.
pub const CHECKED: [i32; 3] = [0, 3, 63];

/// To serve an image of so many bytes out of.
#[must_use]
pub fn serving_jail(image: &Path, size: u64, writable: bool) -> Jail {
    let seconds = (size >> 30).saturating_mul(SECONDS_PER_GIB).max(SERVING_SECONDS_MIN);
    Jail {
        image: image.to_owned(),
        writable,
        socket: true,
        memory_bytes_max: MEMORY_BYTES_MAX,
        cpu_seconds_max: seconds,
        parent: std::process::id(),
    }
}

/// Has the server serve the image to one client, as the export without a name, and then end. Whatever
/// the image says, it has no parent image.
#[must_use]
pub fn serving(format: Format, writable: bool) -> Vec<String> {
    let backing =
        if format == Format::Qcow2 { serde_json::json!({ "backing": null }) } else { serde_json::json!({}) };
    let mut node = serde_json::json!({
        "driver": format.driver(),
        "file": { "driver": "file", "filename": IMAGE_PATH, "locking": "off" },
    });
    if let (Some(node), serde_json::Value::Object(backing)) = (node.as_object_mut(), backing) {
        node.extend(backing);
    }
    let mut arguments = vec![format!("json:{node}")];
    arguments.push(if writable { "--discard=unmap" } else { "--read-only" }.to_owned());
    arguments
}

/// The same, to any number of clients, one after the other or beside another, and for ever.
#[must_use]
pub fn serving_all(format: Format) -> Vec<String> {
    let mut arguments = serving(format, false);
    arguments.extend(["--persistent", "--shared=0"].map(str::to_owned));
    arguments
}

/// Makes a new, empty image.
#[must_use]
pub fn creation(format: Format, image: &Path, size: u64) -> std::process::Command {
    let mut command = std::process::Command::new(INSPECTOR);
    command.args(["create", "-q", "-f", format.driver()]).arg(image).arg(size.to_string());
    command
}
