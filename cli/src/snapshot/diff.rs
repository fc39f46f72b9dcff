//! `trivet snapshot diff`.

use super::DiffArgs;
use crate::args::Format;
use crate::explain;
use crate::failure::Failure;
use crate::output::{json, say, table};
use serde::Serialize;
use std::path::Path;
use trivet_api::{Client, v1};
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;

/// A run of bytes that has changed.
#[derive(Serialize, Debug)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// `data`, or `zeros` where it was discarded.
    pub(super) holds: &'static str,
}

impl Extent {
    pub(super) const fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What has changed on a volume between a snapshot and a later one, or now.
pub(super) async fn changes(
    client: &Client,
    dir: &Path,
    volume: &str,
    since: &str,
    until: Option<&str>,
) -> Result<Vec<Extent>, Failure> {
    let mut extents = Vec::new();
    let mut next = Some(0);
    while let Some(start) = next {
        let request = v1::ListChangesRequest {
            volume: volume.to_owned(),
            since: since.to_owned(),
            until: until.unwrap_or_default().to_owned(),
            start,
        };
        let page = client.list_changes(request).await;
        let page = page
            .map_err(|error| explain::api(dir, format!("cannot compare snapshots of '{volume}'"), &error))?;
        extents.extend(page.extents.iter().map(|extent| Extent {
            offset: extent.start * BLOCK_SIZE_U64,
            length: extent.blocks * BLOCK_SIZE_U64,
            holds: if extent.discarded { "zeros" } else { "data" },
        }));
        next = page.next;
    }
    Ok(extents)
}

pub(super) async fn run(arguments: &DiffArgs) -> Result<(), Failure> {
    let DiffArgs { volume, since, .. } = arguments;
    let (client, dir) = arguments.place.connect()?;
    let extents = changes(&client, &dir, volume, since, arguments.until.as_deref()).await?;
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
