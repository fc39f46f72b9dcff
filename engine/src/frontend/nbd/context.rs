//! Metadata contexts: what a client may ask of ranges besides their contents.
//!
//! `base:allocation` says where data is. `qemu:dirty-bitmap:SNAPSHOT`, as QEMU calls its own, says what has
//! changed since a snapshot: third parties' backup tools know how to use it. There is one for each snapshot
//! that is older than what is served.

use super::protocol::{allocation, changed};
use super::{ExportInfo, Since};
use trivet_model::SnapshotId;

/// Contexts that a client may select.
pub(super) const SELECTED_MAX: usize = 16;

/// A context that an export has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Context {
    Allocation,
    /// Changes since the snapshot at this place in the export's list.
    Changed {
        index: u32,
        since: SnapshotId,
    },
}

impl Context {
    /// How replies name it.
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::Allocation => allocation::ID,
            Self::Changed { index, .. } => changed::FIRST_ID + index,
        }
    }

    pub(super) fn name(self, export: &ExportInfo) -> Vec<u8> {
        match self {
            Self::Allocation => allocation::NAME.to_vec(),
            Self::Changed { index, .. } => {
                [changed::NAMESPACE, export.changed_since[index as usize].name.as_bytes()].concat()
            }
        }
    }

    /// The flags of a range for which the volume says `is` (that it holds data, or has changed).
    pub(super) const fn flags(self, is: bool) -> u32 {
        match (self, is) {
            (Self::Allocation, true) | (Self::Changed { .. }, false) => 0,
            (Self::Allocation, false) => allocation::HOLE_AND_ZERO,
            (Self::Changed { .. }, true) => changed::DIRTY,
        }
    }
}

/// Every context of an export, with its name.
fn all(export: &ExportInfo) -> impl Iterator<Item = Context> + '_ {
    let changed = (0..).zip(&export.changed_since);
    let changed = changed.map(|(index, Since { snapshot, .. })| Context::Changed { index, since: *snapshot });
    std::iter::once(Context::Allocation).chain(changed)
}

/// Those that a query means: by name, or where it lists, all of a namespace.
pub(super) fn matching<'a>(
    query: &'a [u8],
    lists: bool,
    export: &'a ExportInfo,
) -> impl Iterator<Item = Context> + 'a {
    all(export).filter(move |context| {
        let namespaces: &[&[u8]] = match context {
            Context::Allocation => &[allocation::NAMESPACE],
            Context::Changed { .. } => &[changed::ROOT, changed::NAMESPACE],
        };
        query == context.name(export) || (lists && namespaces.contains(&query))
    })
}

/// All, for a client that lists without a query.
pub(super) fn listed(export: &ExportInfo) -> Vec<Context> {
    all(export).collect()
}
