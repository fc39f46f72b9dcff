//! `trivet snapshot diff`.

use super::DiffArgs;
use crate::args::Format;
use crate::explain;
use crate::failure::Failure;
use crate::output::{json, say, table};
use serde::Serialize;
use trivet_api::v1;
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;

/// A run of bytes that has changed.
#[derive(Serialize, Debug)]
struct Extent {
    offset: u64,
    length: u64,
    /// `data`, or `zeros` where it was discarded.
    holds: &'static str,
}

pub(super) async fn run(arguments: &DiffArgs) -> Result<(), Failure> {
    let DiffArgs { volume, since, .. } = arguments;
    let (client, dir) = arguments.place.connect()?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut next = Some(0);
    while let Some(start) = next {
        let request = v1::ListChangesRequest {
            volume: volume.clone(),
            since: since.clone(),
            until: arguments.until.clone().unwrap_or_default(),
            start,
        };
        let page = client.list_changes(request).await;
        let page = page
            .map_err(|error| explain::api(&dir, format!("cannot compare snapshots of '{volume}'"), &error))?;
        extents.extend(page.extents.iter().map(|extent| Extent {
            offset: extent.start * BLOCK_SIZE_U64,
            length: extent.blocks * BLOCK_SIZE_U64,
            holds: if extent.discarded { "zeros" } else { "data" },
        }));
        next = page.next;
    }
    match arguments.output.output {
        Format::Json => json(&extents),
        Format::Table if extents.is_empty() => say("nothing has changed"),
        Format::Table => {
            let rows = extents.iter().map(|extent| {
                vec![extent.offset.to_string(), extent.length.to_string(), extent.holds.to_owned()]
            });
            let sum = |holds| {
                let alike = extents.iter().filter(|extent| extent.holds == holds);
                ByteSize(alike.map(|extent| extent.length).sum())
            };
            let rows = table(&[">OFFSET", ">LENGTH", "HOLDS"], rows.collect());
            say(&format!("{rows}\n{} written, {} discarded", sum("data"), sum("zeros")));
        }
    }
    Ok(())
}
