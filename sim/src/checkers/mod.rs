//! What must hold, and how it is seen.

pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod invariants;
pub(crate) mod oracle;
