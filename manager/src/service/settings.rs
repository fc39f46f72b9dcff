//! Settings put in force: an engine that serves the volume is told to look at its record again.

use super::ManagerService;
use crate::control::Refusal;
use crate::control::volumes::{attachment, find};
use crate::engine_report::{OrderError, follow_settings};
use std::time::Duration;
use tokio::time::Instant;
use trivet_api::v1;

/// How long an engine may take: one that is started again opens the volume first. Below the time that
/// clients wait for the answer.
const PATIENCE: Duration = Duration::from_secs(45);
/// Until it is told again.
const AGAIN: Duration = Duration::from_millis(200);

impl ManagerService {
    pub(super) async fn set(&self, request: v1::SetVolumeRequest) -> Result<(), Refusal> {
        let name = request.name.clone();
        self.control.set(request).await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let (record, _) = find(self.store.as_ref(), &name)?;
            if attachment(self.store.as_ref(), record.id)?.is_none() {
                // Whoever opens it reads the record first.
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now()).max(AGAIN);
            match follow_settings(&self.layout.engine_control_socket(&name)?, left).await {
                Ok(()) => return Ok(()),
                Err(cause) if cause == OrderError::Silent || Instant::now() >= until => {
                    return Err(Refusal::SettingsNotFollowed { volume: name, cause });
                }
                // It is starting, or opening the volume.
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}
