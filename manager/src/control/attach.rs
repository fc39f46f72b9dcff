//! Having volumes served, and no longer.

use super::imports::check_imported;
use super::processes::{ENGINE_OWNER, engine_name};
use super::reverts::check_not_reverting;
use super::volumes::{attachment, find};
use super::{Control, Refusal};
use crate::records::{self, AttachmentRecord};
use crate::supervisor::STOP_TIMEOUT;
use std::net::{TcpListener, ToSocketAddrs};
use trivet_api::v1;
use trivet_model::VolumeRecord;

impl Control {
    pub(super) async fn attach_volume(&self, mut request: v1::AttachVolumeRequest) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), &request.name)?;
        let key = Self::key_of(&record, &mut request.data_key)?;
        check_not_reverting(&record)?;
        if request.read_only {
            check_imported(&record)?;
        }
        if let Some((attached, _)) = attachment(self.store.as_ref(), record.id)? {
            let listen = attached.listen.as_deref().unwrap_or_default();
            if attached.read_only != request.read_only
                || (!request.listen.is_empty() && listen != request.listen)
            {
                return Err(Refusal::AttachedOtherwise(record.name));
            }
            if let Some(key) = key {
                self.keep_key(record.id, key)?;
                self.hand_over_keys().await?;
            }
            return Ok(0);
        }
        self.end_detached_engine(&record.name).await?;
        let (record, _) = find(self.store.as_ref(), &request.name)?;
        if record.key.is_some() && key.is_none() {
            return Err(Refusal::Locked(record.name));
        }
        self.check_unused(&record, request.force)?;
        if record.is_image && !request.read_only {
            return Err(Refusal::IsImage(record.name));
        }
        let listen = match request.listen.as_str() {
            "" => None,
            address => Some(loopback_address(address)?),
        };
        let wanted = AttachmentRecord { volume: record.id, listen, read_only: request.read_only };
        if let Some(key) = key {
            self.keep_key(record.id, key)?;
        }
        records::write(self.store.as_ref(), &wanted, None).inspect_err(|_| self.forget_key(record.id))?;
        self.apply_processes().await?;
        Ok(1)
    }

    pub(super) async fn detach_volume(&self, name: &str) -> Result<u32, Refusal> {
        let (record, _) = find(self.store.as_ref(), name)?;
        if let Some((attached, revision)) = attachment(self.store.as_ref(), record.id)? {
            self.store.commit(&[records::remove(&attached, revision)])?;
            self.apply_processes().await?;
        }
        self.forget_key(record.id);
        if !self.is_gone(&engine_name(name)).await {
            return Err(Refusal::EngineStays(name.to_owned()));
        }
        self.clear_owner(name)?;
        Ok(0)
    }

    /// Waits until a process that is wanted no more has ended; whether it has.
    pub(super) async fn is_gone(&self, process: &str) -> bool {
        // The first wait is for the supervisor to have taken the new wish in: until then it would
        // keep the process up. It takes wishes in order, and shows the stop in its states.
        self.supervisor.wait_until(STOP_TIMEOUT * 2, |states| !states.contains_key(process)).await
    }

    /// An engine that was killed did not say goodbye in the record; the manager, which has seen
    /// its end, does it for it. An engine that opened the volume since is left alone.
    fn clear_owner(&self, name: &str) -> Result<(), Refusal> {
        let (record, revision) = find(self.store.as_ref(), name)?;
        if record.owner.starts_with(ENGINE_OWNER) {
            let closed = VolumeRecord { owner: String::new(), ..record };
            records::write(self.store.as_ref(), &closed, Some(revision))?;
        }
        Ok(())
    }
}

/// The address, checked: on the loopback interface, and free. Port 0 becomes a free port, which
/// the volume keeps.
pub(super) fn loopback_address(text: &str) -> Result<String, Refusal> {
    let failed = |cause| Refusal::Address { address: text.to_owned(), cause };
    let address = text
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
    if !address.ip().is_loopback() {
        return Err(Refusal::NotLoopback { address: text.to_owned() });
    }
    let free = TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(failed)?;
    Ok(free.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_free_loopback_addresses_are_taken() {
        let address = loopback_address("127.0.0.1:0").unwrap();
        assert_ne!(address, "127.0.0.1:0");
        let listener = TcpListener::bind(&address).unwrap();
        assert!(matches!(loopback_address(&address), Err(Refusal::Address { .. })));
        drop(listener);
        assert!(matches!(loopback_address("0.0.0.0:10809"), Err(Refusal::NotLoopback { .. })));
        assert!(matches!(loopback_address("nonsense"), Err(Refusal::Address { .. })));
    }
}
