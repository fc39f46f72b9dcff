//! Volumes that are filled from a source while they are used, as far as the manager has a say in it.

use super::{IN_SYNC, World, words};
use crate::records;
use trivet_api::v1;
use trivet_model::{BLOCK_SIZE_U64, Generation};

fn request(source: &str, fingerprint: u32) -> v1::ImportVolumeRequest {
    let bytes = 1000 * BLOCK_SIZE_U64;
    v1::ImportVolumeRequest { name: "data".into(), source: source.into(), bytes, fingerprint, dry_run: false }
}

impl World {
    /// As an engine does.
    fn hydrate(&self, blocks: u64) {
        let (mut record, revision) = self.record();
        record.generation = Generation::new(1).unwrap();
        record.import.as_mut().unwrap().hydrated = blocks;
        records::write(self.store(), &record, Some(revision)).unwrap();
    }
}

#[tokio::test]
async fn an_import_goes_on_from_where_its_source_is_now() {
    let world = World::new(1, &[IN_SYNC]).await;
    world.control.import_volume(&request("nbd://a/x", 7)).unwrap();
    world.hydrate(128);
    world.control.import_volume(&request("nbd://a/x", 7)).unwrap();
    let refused = words(world.control.import_volume(&request("nbd://b/x", 8)));
    assert!(refused.contains("from nbd://a/x") && refused.contains("another source"), "{refused}");
    let only_asked = v1::ImportVolumeRequest { dry_run: true, ..request("nbd://c/x", 7) };
    world.control.import_volume(&request("nbd://b/x", 7)).unwrap();
    world.control.import_volume(&only_asked).unwrap();
    let import = world.record().0.import.unwrap();
    assert_eq!((import.source.as_str(), import.hydrated), ("nbd://b/x", 128));
}

#[tokio::test]
async fn only_a_volume_that_was_never_opened_is_filled_and_is_not_copied_before_it_is() {
    let world = World::new(1, &[IN_SYNC]).await;
    let large = v1::ImportVolumeRequest { bytes: 1025 * BLOCK_SIZE_U64, ..request("nbd://a/x", 7) };
    assert!(words(world.control.import_volume(&large)).contains("cannot be filled"));
    let long = request(&"x".repeat(5000), 7);
    assert!(words(world.control.import_volume(&long)).contains("has 5000 bytes"));
    let only_asked = v1::ImportVolumeRequest { dry_run: true, ..request("nbd://a/x", 7) };
    world.control.import_volume(&only_asked).unwrap();
    assert_eq!(world.record().0.import, None);
    world.control.import_volume(&request("nbd://a/x", 7)).unwrap();
    let clone = v1::CloneVolumeRequest { of: "data".into(), name: "copy".into(), ..Default::default() };
    assert!(words(world.control.clone_volume(&clone).await).contains("still being imported"));
    let image = v1::SetImageRequest { name: "data".into(), is_image: true };
    assert!(words(world.control.set_image(&image).await).contains("still being imported"));
    let read = v1::AttachVolumeRequest { name: "data".into(), read_only: true, ..Default::default() };
    assert!(words(world.control.attach_volume(read).await).contains("still being imported"));
    let salvage = v1::SalvageVolumeRequest { name: "data".into(), from: 1, ..Default::default() };
    assert!(words(world.control.salvage_volume(&salvage).await).contains("was still being imported"));

    let world = World::new(1, &[IN_SYNC]).await;
    let (mut record, revision) = world.record();
    record.generation = Generation::new(1).unwrap();
    records::write(world.store(), &record, Some(revision)).unwrap();
    assert!(words(world.control.import_volume(&request("nbd://a/x", 7))).contains("opened before"));
}
