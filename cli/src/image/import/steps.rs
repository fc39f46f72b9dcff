//! The steps of an import, and what becomes of it when one fails.

use super::download::download;
use super::{
    Checksum, Copied, CopyError, Exit, Failure, Fingerprint, Format, ImportArgs, Origin, Path, Progress,
    RawImage, Records, Schedule, Source, Target, Volumes, check, copy, open, open_local, record_failure,
    report, whole_blocks,
};
use crate::down::confirm;
use crate::nbd::NbdClient;
use crate::output::say;
use crate::view::VolumeView;
use trivet_images::record::ImportRecord;
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;
use trivet_nbd::Wanted;

/// Times that the volume may go away without anything being copied in between.
const AWAY_MAX: u32 = 5;

pub(super) struct Import<'a> {
    pub(super) arguments: &'a ImportArgs,
    pub(super) volumes: Volumes,
    pub(super) records: Records,
}

/// A source, ready to be copied.
struct Prepared {
    source: Source,
    fingerprint: Fingerprint,
    format: Format,
}

impl Import<'_> {
    pub(super) async fn run(&mut self, origin: &Origin) -> Result<(), Failure> {
        let prepared = self.prepare(origin).await;
        let mut prepared = match prepared {
            Err(failure) if failure.exit == Exit::Data && matches!(origin, Origin::Url(_)) => {
                // What was downloaded is of no use.
                self.records.forget_download().map_err(|error| record_failure(&error))?;
                return Err(failure);
            }
            prepared => prepared?,
        };
        let Some(mut record) = self.volume_for(&prepared).await? else { return Ok(()) };
        let outcome = self.copy_and_check(&mut prepared, &mut record).await;
        match outcome {
            Ok((volume, copied)) => {
                self.records.forget().map_err(|error| record_failure(&error))?;
                let volume = if record.attached && !self.arguments.attach {
                    self.volumes.detach(&volume.name).await?;
                    self.volumes.get(&volume.name).await?
                } else {
                    volume
                };
                report(self.arguments, &volume, copied, prepared.source.size(), &self.volumes.dir);
                Ok(())
            }
            Err(CopyError::Unusable(failure)) => {
                self.give_up().await?;
                Err(failure)
            }
            Err(interrupted) => {
                if record.attached {
                    // The reason of the interruption is what counts.
                    let detached = self.volumes.detach(&self.arguments.volume).await;
                    tracing::debug!("detaching after an interruption: {detached:?}");
                }
                Err(interrupted.into_failure())
            }
        }
    }

    /// Removes what the import has made.
    async fn give_up(&self) -> Result<(), Failure> {
        let record = self.records.import().map_err(|error| record_failure(&error))?;
        let name = &self.arguments.volume;
        if let Some(record) = record.filter(|record| record.created)
            && self.volumes.find(name).await?.is_some_and(|found| found.id == record.volume)
        {
            self.volumes.remove(name).await?;
        }
        self.records.forget().map_err(|error| record_failure(&error))
    }

    async fn prepare(&self, origin: &Origin) -> Result<Prepared, Failure> {
        let arguments = self.arguments;
        match origin {
            Origin::Path(path) => {
                let (image, format) = open(path, arguments.format)?;
                let fingerprint = image.fingerprint().clone();
                self.prepare_local(path, image, format, fingerprint).await
            }
            Origin::Url(url) => {
                // The name in the URL says what it is, not that of the file it is kept in.
                let path = url.split(['?', '#']).next().unwrap_or_default();
                let format = arguments.format.unwrap_or_else(|| Format::of_name(Path::new(path)));
                let (file, fingerprint) = download(url, &self.records).await?;
                let looks_like =
                    if arguments.format.is_none() && format == Format::Raw { None } else { Some(format) };
                let (image, format) = open(&file, looks_like)?;
                self.prepare_local(&file, image, format, fingerprint).await
            }
            Origin::Nbd(uri) => {
                if let Some(format) = arguments.format.filter(|format| *format != Format::Raw) {
                    let next =
                        "have the server serve the disk: qemu-nbd -f qcow2, for one; or leave --format away";
                    let cause = format!("what an NBD server holds is taken as it is, not as {format}");
                    return Err(Failure::new("cannot import that", cause, next).exit(Exit::Usage));
                }
                let mut source = Source::nbd(uri, &arguments.source).await?;
                if source.size() == 0 {
                    return Err(
                        Failure::new("cannot import that", "the export is empty", "").exit(Exit::Data)
                    );
                }
                if let Some(checksum) = self.checksum_due()? {
                    check(&mut source, checksum, &arguments.source).await?;
                }
                let fingerprint = Fingerprint::Nbd { size: source.size() };
                Ok(Prepared { source, fingerprint, format: Format::Raw })
            }
        }
    }

    async fn prepare_local(
        &self,
        path: &Path,
        image: RawImage,
        format: Format,
        fingerprint: Fingerprint,
    ) -> Result<Prepared, Failure> {
        let mut image = image;
        if let Some(checksum) = self.checksum_due()? {
            let mut bytes = Source::raw(image, path.to_owned());
            check(&mut bytes, checksum, &self.arguments.source).await?;
            bytes.check_unchanged()?;
            image = open(path, Some(format))?.0;
        }
        let source = open_local(path, (image, format), self.arguments.size).await?;
        Ok(Prepared { source, fingerprint, format })
    }

    /// The checksum, unless it was compared before an interruption.
    fn checksum_due(&self) -> Result<Option<&Checksum>, Failure> {
        let under_way = self.records.import().map_err(|error| record_failure(&error))?;
        let same = under_way.is_some_and(|record| {
            record.source == self.arguments.source && record.fingerprint.shows_changes()
        });
        Ok(self.arguments.checksum.as_ref().filter(|_| !same))
    }

    /// The volume to copy into, and how far it is; nothing if nothing is to be done.
    async fn volume_for(&self, prepared: &Prepared) -> Result<Option<ImportRecord>, Failure> {
        let name = &self.arguments.volume;
        let found = self.volumes.find(name).await?;
        let kept = self.records.import().map_err(|error| record_failure(&error))?;
        if let (Some(record), Some(volume)) = (kept, &found)
            && record.volume == volume.id
        {
            self.check_same(&record, prepared)?;
            if self.arguments.dry_run {
                say(&format!("would go on at {} with the import into '{name}'", ByteSize(record.copied)));
                return Ok(None);
            }
            eprintln!("going on with the import into '{name}' at {}", ByteSize(record.copied));
            return Ok(Some(record));
        }
        let size = prepared.source.size();
        let blocks = whole_blocks(size);
        let (volume, created) = match found {
            Some(volume) => {
                self.check_no_wishes(name)?;
                check_fits(&volume, size)?;
                let lost = format!("This overwrites the first {} of volume '{name}'.", ByteSize(size));
                if self.arguments.dry_run {
                    say(&format!("would import {} into volume '{name}', which is there", ByteSize(size)));
                    return Ok(None);
                }
                confirm(&lost, self.arguments.yes)?;
                (volume, false)
            }
            None => {
                let wanted = self.arguments.size.map_or(blocks, |size| size.blocks);
                if wanted < blocks {
                    return Err(too_small(name, wanted * BLOCK_SIZE_U64, size));
                }
                if self.arguments.dry_run {
                    let volume = ByteSize(wanted * BLOCK_SIZE_U64);
                    say(&format!(
                        "would make volume '{name}' of {volume} and import {} into it",
                        ByteSize(size)
                    ));
                    return Ok(None);
                }
                (self.volumes.create(name, wanted, self.arguments.copies).await?, true)
            }
        };
        let mut record = ImportRecord::new(
            self.arguments.source.clone(),
            prepared.fingerprint.clone(),
            prepared.format.name().to_owned(),
            volume.id,
        );
        record.created = created;
        self.records.keep_import(&record).map_err(|error| record_failure(&error))?;
        Ok(Some(record))
    }

    /// A volume that is there keeps its size and copies.
    fn check_no_wishes(&self, name: &str) -> Result<(), Failure> {
        if self.arguments.size.is_none() && self.arguments.copies.is_none() {
            return Ok(());
        }
        let next = "leave --size and --copies away, or name another volume";
        let cause = "there is such a volume, which keeps its size and copies";
        Err(Failure::new(format!("cannot make volume '{name}'"), cause, next).exit(Exit::Conflict))
    }

    fn check_same(&self, record: &ImportRecord, prepared: &Prepared) -> Result<(), Failure> {
        let cause = if record.source != self.arguments.source {
            format!("it was from {}", record.source)
        } else if record.fingerprint != prepared.fingerprint || record.format != prepared.format.name() {
            "the source is not the one that it began with: it was changed meanwhile".to_owned()
        } else {
            if !record.fingerprint.shows_changes() {
                eprintln!(
                    "note: whether the source was written to meanwhile cannot be seen; --restart begins anew"
                );
            }
            return Ok(());
        };
        Err(Failure::new(
            format!("cannot go on with the import into '{}'", self.arguments.volume),
            cause,
            "begin anew: the same command with --restart",
        )
        .exit(Exit::Conflict))
    }

    async fn copy_and_check(
        &self,
        prepared: &mut Prepared,
        record: &mut ImportRecord,
    ) -> Result<(VolumeView, Copied), CopyError> {
        let interrupted = CopyError::Interrupted;
        let volume = self.attached(record).await.map_err(interrupted)?;
        let copied = self.copy_over_restarts(prepared, record).await?;
        prepared.source.check_unchanged().map_err(CopyError::Unusable)?;
        if self.arguments.verify {
            let mut target = Target::comparison(self.connect(Wanted::Data).await?);
            let size = prepared.source.size();
            eprintln!("reading both again, and comparing");
            let mut progress = Progress::new(0, size, |_| Ok(()));
            let (source, schedule) = (&mut prepared.source, Schedule::new(0, size));
            copy(source, &mut target, schedule, &mut progress, &mut Copied::default()).await?;
        }
        let name = &self.arguments.volume;
        let volume = self.volumes.find(name).await.map_err(interrupted)?.unwrap_or(volume);
        Ok((volume, copied))
    }

    async fn attached(&self, record: &mut ImportRecord) -> Result<VolumeView, Failure> {
        let name = &self.arguments.volume;
        if self.volumes.get(name).await?.attached {
            return self.volumes.served(name).await;
        }
        record.attached = true;
        self.records.keep_import(record).map_err(|error| record_failure(&error))?;
        self.volumes.attach(name, false, &self.arguments.key).await
    }

    async fn connect(&self, wanted: Wanted) -> Result<NbdClient, CopyError> {
        let served = self.volumes.served(&self.arguments.volume).await.map_err(CopyError::Interrupted)?;
        let uri = crate::image::volume::parse_uri(&served.name, served.uri.as_deref())
            .map_err(CopyError::Interrupted)?;
        NbdClient::connect(&uri, wanted).await.map_err(CopyError::VolumeAway)
    }

    /// Copies; when the volume's engine ends, goes on with the next one.
    async fn copy_over_restarts(
        &self,
        prepared: &mut Prepared,
        record: &mut ImportRecord,
    ) -> Result<Copied, CopyError> {
        let mut away = 0;
        let mut copied = Copied::default();
        loop {
            let before = record.copied;
            let outcome = self.copy_once(prepared, record, &mut copied).await;
            match outcome {
                Err(CopyError::VolumeAway(error)) => {
                    away = if record.copied > before { 1 } else { away + 1 };
                    if away > AWAY_MAX {
                        return Err(CopyError::VolumeAway(error));
                    }
                    eprintln!("the connection to the volume broke ({error}); connecting again");
                    prepared.source.settle().await?;
                }
                outcome => return outcome.map(|()| copied),
            }
        }
    }

    async fn copy_once(
        &self,
        prepared: &mut Prepared,
        record: &mut ImportRecord,
        copied: &mut Copied,
    ) -> Result<(), CopyError> {
        let client = self.connect(Wanted::Data).await?;
        let mut target = Target::nbd(client, record.created, None);
        let (start, end) = (record.copied, prepared.source.size());
        let mut progress = Progress::new(start, end, |cursor| {
            record.copied = cursor;
            self.records.keep_import(record).map_err(|error| record_failure(&error))
        });
        copy(&mut prepared.source, &mut target, Schedule::new(start, end), &mut progress, copied).await
    }
}

/// Refuses a volume that is there and cannot take what is of this size.
pub(super) fn check_fits(volume: &VolumeView, size: u64) -> Result<(), Failure> {
    let name = &volume.name;
    if let Some(import) = &volume.import {
        let cause = format!("it is still being imported, from {}", import.source);
        let next = format!("wait until that is done: trivet volume show {name}; or name another volume");
        let what = format!("cannot import into volume '{name}'");
        return Err(Failure::new(what, cause, next).exit(Exit::Conflict));
    }
    if volume.size_bytes < size {
        return Err(too_small(name, volume.size_bytes, size));
    }
    if volume.attached && volume.read_only {
        let next = format!("detach it first: trivet volume detach {name}");
        let what = format!("cannot import into volume '{name}'");
        return Err(Failure::new(what, "it is attached for reading only", next).exit(Exit::Conflict));
    }
    if volume.connections > 0 {
        let next = "disconnect them first";
        let cause = format!("it is in use: {} connections", volume.connections);
        let what = format!("cannot import into volume '{name}'");
        return Err(Failure::new(what, cause, next).exit(Exit::Conflict));
    }
    Ok(())
}

pub(super) fn too_small(name: &str, found: u64, needed: u64) -> Failure {
    Failure::new(
        format!("cannot import into volume '{name}'"),
        format!("it has {}, the image is of {} ({needed} bytes)", ByteSize(found), ByteSize(needed)),
        "name a larger --size for a new volume, or grow the one that is there: trivet volume resize",
    )
    .exit(Exit::Usage)
}
