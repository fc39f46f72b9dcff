//! Finding a cluster and its manager.

use crate::args::Place;
use crate::explain;
use crate::failure::{Exit, Failure};
use std::path::{Path, PathBuf};
use trivet_api::{Client, Layout, ManagerAddress};

impl Place {
    /// The folder meant, whether it is there or not.
    pub(crate) fn dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
        match data {
            Some(data) => Ok(data.join("trivet")),
            None => Err(Failure::new(
                "no folder for the cluster",
                "neither --dir, TRIVET_DIR, XDG_DATA_HOME nor HOME is set",
                "name one: --dir DIR",
            )
            .exit(Exit::Usage)),
        }
    }

    /// The cluster there.
    pub(crate) fn layout(&self) -> Result<Layout, Failure> {
        Layout::open(&self.dir()?).map_err(|error| explain::layout(&error))
    }

    /// A client of the cluster's manager, and the folder for messages.
    pub(crate) fn connect(&self) -> Result<(Client, PathBuf), Failure> {
        let layout = self.layout()?;
        Ok((client(&layout)?, layout.dir().to_owned()))
    }
}

/// The address of a cluster's manager.
pub(crate) fn manager_address(layout: &Layout) -> Result<ManagerAddress, Failure> {
    layout.manager_socket().map(ManagerAddress::Socket).map_err(|error| explain::layout(&error))
}

/// A client of a cluster's manager.
pub(crate) fn client(layout: &Layout) -> Result<Client, Failure> {
    let address = manager_address(layout)?;
    Client::new(&address).map_err(|error| explain::api(layout.dir(), "cannot reach the manager", &error))
}

/// A command on this cluster as people would type it: `trivet WORDS --dir DIR`, without the
/// option where it is not needed.
pub(crate) fn command(dir: &Path, words: &str) -> String {
    let default = Place { dir: std::env::var_os("TRIVET_DIR").map(PathBuf::from) }.dir().ok();
    let is_default = default.and_then(|dir| dir.canonicalize().ok()).is_some_and(|default| default == dir);
    if is_default { format!("trivet {words}") } else { format!("trivet {words} --dir {}", dir.display()) }
}
