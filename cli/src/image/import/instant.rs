//! `trivet import --instant`: the volume's engine reads from the source what the volume does not have
//! yet, and copies it in the background (`engine/src/volume/hydration.rs`).

use super::steps::too_small;
use super::{
    BLOCK_SIZE_U64, ByteSize, Exit, Failure, ImportArgs, Origin, Source, Volumes, announce, whole_blocks,
};
use crate::output::say;
use trivet_api::{Layout, v1};

pub(super) async fn run(arguments: &ImportArgs, origin: &Origin, layout: Layout) -> Result<(), Failure> {
    let name = &arguments.volume;
    let Origin::Nbd(uri) = origin else {
        let next = "serve it first (qemu-nbd --read-only, nbdkit file), or leave --instant away";
        let cause = "an instant import reads from an NBD server while the volume is used";
        return Err(Failure::new("cannot import that instantly", cause, next).exit(Exit::Usage));
    };
    let volumes = Volumes::of(layout)?;
    let bytes = Source::nbd(uri, &arguments.source).await?.size();
    let blocks = arguments.size.map_or(whole_blocks(bytes), |size| size.blocks);
    if blocks < whole_blocks(bytes) {
        return Err(too_small(name, blocks * BLOCK_SIZE_U64, bytes));
    }
    if arguments.dry_run {
        let (volume, source) = (ByteSize(blocks * BLOCK_SIZE_U64), ByteSize(bytes));
        say(&format!(
            "would make volume '{name}' of {volume}, serve it, and copy {source} into it meanwhile"
        ));
        return Ok(());
    }
    let import = v1::InstantImport { source: arguments.source.clone(), bytes, hydrated: 0 };
    drop(volumes.create(name, blocks, arguments.copies, Some(import)).await?);
    let volume = match volumes.attach(name, false, None).await {
        Ok(volume) => volume,
        Err(failure) => {
            volumes.remove(name).await?;
            return Err(failure);
        }
    };
    let uri = volume.uri.clone().unwrap_or_default();
    announce(arguments.output, &volume, &format!("{name} can be used, and is copied meanwhile: {uri}"));
    Ok(())
}
