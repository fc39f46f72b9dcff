//! Images from the web come to this machine first: QEMU does not talk to anybody.

use crate::failure::{Exit, Failure};
use crate::progress::Run;
use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use trivet_images::download::{Answer, DownloadError, ask};
use trivet_images::fingerprint::Fingerprint;
use trivet_images::record::{DownloadRecord, Records};

/// A server that sends nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts that bring nothing, before it is given up.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Has the whole file on this machine, and says where.
pub(super) async fn download(url: &str, records: &Records) -> Result<(PathBuf, Fingerprint), Failure> {
    let path = records.download_file();
    let kept = records.download().map_err(|error| super::record_failure(&error))?;
    let mut record = kept.filter(|record| record.url == url);
    if let Some(record) = record.as_ref().filter(|record| record.complete) {
        return Ok((path, record.fingerprint.clone()));
    }
    let mut attempts = 0;
    loop {
        let have = match (&record, std::fs::metadata(&path)) {
            // Without a version, a changed file would not show.
            (Some(record), Ok(metadata)) if record.fingerprint.shows_changes() => metadata.len(),
            _ => 0,
        };
        match attempt(url, have, &mut record, records, &path).await {
            Ok(fingerprint) => return Ok((path, fingerprint)),
            Err(error) if !error.may_pass() => return Err(explain_download(url, &error)),
            Err(error) => {
                let now = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
                attempts = if now > have { 1 } else { attempts + 1 };
                if attempts >= ATTEMPTS_MAX {
                    return Err(explain_download(url, &error));
                }
                eprintln!("{error}; trying again");
                tokio::time::sleep(PAUSE * attempts).await;
            }
        }
    }
}

async fn attempt(
    url: &str,
    have: u64,
    record: &mut Option<DownloadRecord>,
    records: &Records,
    path: &std::path::Path,
) -> Result<Fingerprint, DownloadError> {
    let keep = |record: &DownloadRecord| {
        records.keep_download(record).map_err(|error| DownloadError::Keep(io::Error::other(error)))
    };
    let known = record.as_ref().map(|record| record.fingerprint.clone());
    let asked = url.to_owned();
    let asking = tokio::task::spawn_blocking(move || ask(&asked, have, known.as_ref()));
    let answer = asking.await.map_err(|error| DownloadError::BrokeOff(io::Error::other(error)))??;
    let fingerprint = answer.fingerprint();
    let record = record.insert(DownloadRecord::new(url.to_owned(), fingerprint.clone()));
    keep(record)?;
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(DownloadError::Keep)?;
    let start = answer.start();
    file.set_len(start)
        .and_then(|()| file.seek(SeekFrom::Start(start)).map(drop))
        .map_err(DownloadError::Keep)?;
    save(answer, file).await?;
    record.complete = true;
    keep(record)?;
    Ok(fingerprint)
}

#[allow(clippy::disallowed_methods, reason = "people are told rates")]
fn now() -> Instant {
    Instant::now()
}

/// Receives in a thread of its own, and watches that something comes.
async fn save(answer: Answer, mut file: std::fs::File) -> Result<(), DownloadError> {
    let (start, size) = (answer.start(), answer.size());
    let (sender, mut position) = watch::channel(start);
    let saving = tokio::task::spawn_blocking(move || {
        answer.save(&mut file, |have| {
            if sender.send(have).is_err() {
                tracing::trace!("the command has given up");
            }
        })?;
        file.sync_all().map_err(DownloadError::Keep)
    });
    let mut run = Run::of_bytes(size - start);
    let began = now();
    loop {
        match tokio::time::timeout(PATIENCE, position.changed()).await {
            Ok(Ok(())) => run.tell_bytes(*position.borrow_and_update() - start, now() - began),
            // The thread has ended: what it says counts.
            Ok(Err(_closed)) => break,
            Err(_elapsed) => return Err(DownloadError::BrokeOff(io::ErrorKind::TimedOut.into())),
        }
    }
    saving.await.map_err(|error| DownloadError::BrokeOff(io::Error::other(error)))?
}

fn explain_download(url: &str, error: &DownloadError) -> Failure {
    let what = format!("cannot download {url}");
    let (next, exit) = match error {
        DownloadError::Connection(_) | DownloadError::BrokeOff(_) => {
            ("when it can be reached, run the same command again: it goes on where it was", Exit::Failed)
        }
        DownloadError::Refused(_) => ("check the URL", Exit::NotFound),
        DownloadError::Changed => ("run the same command again: it begins anew", Exit::Data),
        DownloadError::Keep(cause) if cause.kind() == io::ErrorKind::StorageFull => (
            "free space on the file system of the cluster's folder: a download needs as much as the image",
            Exit::NoSpace,
        ),
        DownloadError::Keep(_) => ("see the cause above", Exit::Failed),
        _ => ("download it with another program, and import the file", Exit::Data),
    };
    Failure::new(what, error, next).exit(exit)
}
