//! `trivet import`, `trivet export`, and the jail in which images are read.

pub(crate) mod confine;
mod copy;
mod export;
mod failures;
mod import;
mod source;
mod target;
mod volume;

pub(crate) use export::ExportArgs;
pub(crate) use import::ImportArgs;

use crate::failure::Failure;

pub(crate) async fn import(arguments: &ImportArgs) -> Result<(), Failure> {
    import::run(arguments).await
}

pub(crate) async fn export(arguments: &ExportArgs) -> Result<(), Failure> {
    export::run(arguments).await
}
