//! What helps whoever is refused something. It is said here, where the names are known: nobody else has to read
//! them out of the words of a refusal, which may hold anything that users wrote.

use super::Refusal;
use crate::engine_report::OrderError;

impl Refusal {
    /// What helps, with the commands for it; `None` where its [kind](Self::kind) says enough.
    #[must_use]
    pub fn next_step(&self) -> Option<String> {
        Some(match self {
            Self::SnapshotExists { volume, .. } => {
                format!("choose another name, or delete it: trivet snapshot list {volume}")
            }
            Self::NoSuchSnapshot { volume, .. } => {
                format!("see what there is: trivet snapshot list {volume}")
            }
            Self::VolumeExists(name) => format!("choose another name, or see it: trivet volume show {name}"),
            Self::Attached(name) => format!("detach it first: trivet volume detach {name}"),
            Self::AttachedOtherwise(name) => {
                format!("detach it first (trivet volume detach {name}), then attach it anew")
            }
            Self::NotServed(name) | Self::NotWritten(name) | Self::NotReencrypted(name) => format!(
                "attach it first: trivet volume attach {name}; if it is attached for reading only, detach it before"
            ),
            Self::Open { name, .. } => format!(
                "close it there; if that process is gone for good, say --force, or take the volume from it: trivet \
                 volume attach {name} --force"
            ),
            Self::GrowthFailed { volume, cause: OrderError::Silent | OrderError::Unreachable(_) } => {
                format!("it may grow yet: trivet volume show {volume} says its size, and how its engine is")
            }
            Self::SnapshotFailed { volume, cause: OrderError::Silent | OrderError::Unreachable(_) } => {
                format!(
                    "it may have been done all the same: trivet snapshot list {volume} says; and trivet volume show \
                     {volume} how its engine is"
                )
            }
            Self::GroupNotTaken { .. } | Self::OpenedAnew(_) => {
                "nothing was taken of any volume; try again".to_owned()
            }
            Self::Reverting { volume, .. } => format!(
                "wait until that is done: trivet volume show {volume} says how far it is, and what it waits for"
            ),
            Self::TooManySnapshots { volume, .. } => format!(
                "delete one that you do not need: trivet snapshot list {volume}; or let it have more: trivet volume \
                 set {volume} --snapshot-limit N"
            ),
            Self::Exported { volume, name } => format!(
                "end that first: trivet snapshot unexport {volume} {name}; see them: trivet volume show {volume}"
            ),
            Self::OtherSource { volume, .. } => format!(
                "name one with the same content, wherever it is now; or another volume; or delete this one, with all \
                 that was written to it: trivet volume delete {volume}"
            ),
            Self::ImportUnderWay(name) => format!(
                "wait until that is done: trivet volume show {name} says how far it is; while it is not attached, it \
                 rests: trivet volume attach {name}"
            ),
            Self::ImportLost(name) => format!(
                "delete it and import it again: its source has all but what was written since: trivet volume delete \
                 {name}"
            ),
            Self::NotNew(_) => "name a volume that does not exist yet, or leave --instant away".to_owned(),
            Self::IsImage(name) => format!(
                "clone it: trivet volume clone {name} NEW; or make it a usual volume: trivet volume unseal {name}"
            ),
            Self::NotClosed(name) => {
                format!("attach it, which makes them alike: trivet volume attach {name}; then try again")
            }
            Self::NotCloned { name, .. } => format!(
                "try again; what is a clone of clones can be flattened before: trivet volume flatten {name}"
            ),
            Self::LineageTooLong(name) => {
                format!("flatten it: trivet volume flatten {name}; then clone it")
            }
            Self::TooFewToShare { name, .. } | Self::NoCopyInSync(name) => {
                format!("see which copies are in sync and answer, and why not: trivet volume show {name}")
            }
            Self::SharesThere { name, .. } => {
                format!("choose servers without a copy of it, or say --full: trivet volume show {name}")
            }
            Self::SettingsNotFollowed { volume, .. } => format!(
                "its engine follows by itself once it can: trivet volume show {volume} says what it waits for"
            ),
            Self::ReplicaCount { .. } => {
                "leave --replicas away, or make a new cluster in another --dir".to_owned()
            }
            Self::Address { .. } => {
                "choose another address, or stop what listens there (ss -ltnp shows it)".to_owned()
            }
            Self::NotLoopback { .. } => "name a loopback address, such as 127.0.0.1:10809".to_owned(),
            Self::NoSuchReplica(_) => "see which there are: trivet status".to_owned(),
            Self::AlreadyMember { name, .. } => {
                format!("choose another server, or none; see them: trivet volume show {name}")
            }
            Self::NotMember { name, .. } => format!("see which servers have one: trivet volume show {name}"),
            Self::StillOpen { .. } => "try again in a few seconds, or choose another server".to_owned(),
            Self::NoServerFree(_) => {
                "start the servers that are down, or free space: trivet status shows them".to_owned()
            }
            Self::NoRoom { .. } => {
                "choose another server (trivet status shows what is free), or free space there".to_owned()
            }
            Self::LastInSync { name, .. } => {
                format!("add another first, and wait until it is in sync: trivet replica add {name}")
            }
            Self::NoneWouldAnswer { name, .. } => {
                format!("bring another server back first: trivet volume show {name} says why it is away")
            }
            Self::Replacing(name) | Self::Resealing(name) => {
                format!("wait until that is done: trivet volume show {name} says how far it is")
            }
            Self::NothingToSalvage { name, .. } => {
                format!("attach it: trivet volume attach {name}; --force salvages all the same")
            }
            Self::Locked(name) => format!(
                "give the key that unlocks it: trivet volume attach --help lists how; trivet volume show {name} says \
                 of what kind it is"
            ),
            Self::NotUnlocked(name) => {
                format!("attach it with its key first: trivet volume attach {name} --key-file FILE")
            }
            Self::WrongKey(name) => format!(
                "give the key that unlocks the volume now: trivet volume show {name} says of what kind it is"
            ),
            Self::NotEncrypted(_) => {
                "leave the key out; only a new volume can be encrypted: trivet volume create --encrypt"
                    .to_owned()
            }
            Self::NothingToVerify(_) => {
                "make a volume with --encrypt for that: trivet volume create --help lists how".to_owned()
            }
            Self::KeyDestroyed(name) => format!("delete the rest of it: trivet volume delete {name}"),
            Self::Rekeying(name) => format!(
                "wait a moment; if it stays so, go on with it: trivet volume rekey {name} --data, with its key"
            ),
            Self::TooManyKeys { volume, .. } => format!(
                "delete the oldest of its snapshots (trivet snapshot list {volume}), and see that all copies are in \
                 sync (trivet volume show {volume})"
            ),
            Self::NotRekeyedYet { volume, .. } => format!(
                "it does as soon as its engine can; trivet volume show {volume} says so; the same command goes on \
                 with it"
            ),
            Self::OlderKey { volume, .. } => format!(
                "clone the volume as it is once all is encrypted anew (trivet volume show {volume} says when), or \
                 export that snapshot and import it into a new volume"
            ),
            Self::Stopping => "bring the cluster up again: trivet up".to_owned(),
            Self::NoSuchVolume(_)
            | Self::BadName(_)
            | Self::BadSize { .. }
            | Self::Shrinks { .. }
            | Self::GrowthFailed { cause: OrderError::Refused(_), .. }
            | Self::BadSnapshotName(_)
            | Self::BadLabels { .. }
            | Self::NamedTwice(_)
            | Self::ServerNamedTwice(_)
            | Self::BadImport { .. }
            | Self::LongSource { .. }
            | Self::SnapshotOrder { .. }
            | Self::SnapshotFailed { cause: OrderError::Refused(_), .. }
            | Self::Limit(_)
            | Self::TooFewReplicas { .. }
            | Self::BadReplicaCount { .. }
            | Self::NoPort { .. }
            | Self::Conflict { .. }
            | Self::Raced
            | Self::Identity(_)
            | Self::EngineStays(_)
            | Self::ReplicaNotMet(_)
            | Self::ReplicaAway { .. }
            | Self::NoCopy { .. }
            | Self::MalformedKey(_)
            | Self::Unguarded(_)
            | Self::NoGeneration(_)
            | Self::Replica(_)
            | Self::Random(_)
            | Self::Layout(_)
            | Self::Record(_)
            | Self::Store(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_api::FailureKind;

    fn refusals() -> Vec<(Refusal, &'static str)> {
        let name = || "disk0".to_owned();
        let volume = name;
        let refused = || OrderError::Refused("no".to_owned());
        vec![
            (Refusal::SnapshotExists { volume: volume(), name: "s".into() }, "trivet snapshot list disk0"),
            (Refusal::NoSuchSnapshot { volume: volume(), name: "s".into() }, "trivet snapshot list disk0"),
            (Refusal::VolumeExists(name()), "trivet volume show disk0"),
            (Refusal::Attached(name()), "trivet volume detach disk0"),
            (Refusal::AttachedOtherwise(name()), "(trivet volume detach disk0), then attach"),
            (Refusal::NotServed(name()), "trivet volume attach disk0"),
            (Refusal::NotWritten(name()), "trivet volume attach disk0"),
            (Refusal::NotReencrypted(name()), "trivet volume attach disk0"),
            (Refusal::Open { name: name(), owner: "qemu".into() }, "trivet volume attach disk0 --force"),
            (
                Refusal::GrowthFailed { volume: volume(), cause: OrderError::Silent },
                "trivet volume show disk0",
            ),
            (
                Refusal::SnapshotFailed { volume: volume(), cause: OrderError::Silent },
                "trivet snapshot list disk0",
            ),
            (
                Refusal::GroupNotTaken { volume: volume(), cause: refused() },
                "nothing was taken of any volume",
            ),
            (Refusal::GroupNotTaken { volume: volume(), cause: OrderError::Silent }, "nothing was taken"),
            (Refusal::OpenedAnew(name()), "nothing was taken of any volume"),
            (Refusal::Reverting { volume: volume(), name: "s".into() }, "trivet volume show disk0"),
            (Refusal::TooManySnapshots { volume: volume(), most: 2 }, "volume set disk0 --snapshot-limit N"),
            (Refusal::Exported { volume: volume(), name: "s".into() }, "trivet snapshot unexport disk0 s;"),
            (Refusal::OtherSource { volume: volume(), from: "nbd://x".into() }, "trivet volume delete disk0"),
            (Refusal::ImportUnderWay(name()), "trivet volume attach disk0"),
            (Refusal::ImportLost(name()), "trivet volume delete disk0"),
            (Refusal::NotNew(name()), "leave --instant away"),
            (Refusal::IsImage(name()), "trivet volume unseal disk0"),
            (Refusal::NotClosed(name()), "trivet volume attach disk0"),
            (Refusal::NotCloned { name: name(), cause: "x".into() }, "trivet volume flatten disk0"),
            (Refusal::LineageTooLong(name()), "trivet volume flatten disk0"),
            (Refusal::TooFewToShare { name: name(), asked: 3, able: 2 }, "trivet volume show disk0"),
            (Refusal::NoCopyInSync(name()), "trivet volume show disk0"),
            (Refusal::SharesThere { name: name(), number: 1 }, "say --full: trivet volume show disk0"),
            (Refusal::SettingsNotFollowed { volume: volume(), cause: refused() }, "trivet volume show disk0"),
            (Refusal::ReplicaCount { have: 3, asked: 2 }, "leave --replicas away"),
            (
                Refusal::Address { address: "x".into(), cause: std::io::ErrorKind::AddrInUse.into() },
                "ss -ltnp",
            ),
            (Refusal::NotLoopback { address: "0.0.0.0:1".into() }, "127.0.0.1:10809"),
            (Refusal::NoSuchReplica(9), "trivet status"),
            (Refusal::AlreadyMember { name: name(), number: 1 }, "trivet volume show disk0"),
            (Refusal::NotMember { name: name(), number: 1 }, "trivet volume show disk0"),
            (Refusal::StillOpen { name: name(), number: 1 }, "in a few seconds"),
            (Refusal::NoServerFree(name()), "trivet status"),
            (Refusal::NoRoom { name: name(), number: 1, free: 1, needed: 2 }, "trivet status"),
            (Refusal::LastInSync { name: name(), number: 1 }, "trivet replica add disk0"),
            (Refusal::NoneWouldAnswer { name: name(), number: 1 }, "trivet volume show disk0"),
            (Refusal::Replacing(name()), "trivet volume show disk0"),
            (Refusal::NothingToSalvage { name: name(), number: 1 }, "--force salvages"),
            (Refusal::Locked(name()), "trivet volume attach --help"),
            (Refusal::NotUnlocked(name()), "trivet volume attach disk0 --key-file"),
            (Refusal::WrongKey(name()), "trivet volume show disk0"),
            (Refusal::NotEncrypted(name()), "leave the key out"),
            (Refusal::NothingToVerify(name()), "--encrypt"),
            (Refusal::KeyDestroyed(name()), "trivet volume delete disk0"),
            (Refusal::Rekeying(name()), "trivet volume rekey disk0 --data"),
            (Refusal::Resealing(name()), "trivet volume show disk0"),
            (Refusal::TooManyKeys { volume: volume(), most: 2 }, "trivet snapshot list disk0"),
            (Refusal::NotRekeyedYet { volume: volume(), cause: refused() }, "the same command goes on"),
            (Refusal::OlderKey { volume: volume(), snapshot: None }, "trivet volume show disk0"),
            (Refusal::Stopping, "trivet up"),
        ]
    }

    #[test]
    fn who_is_refused_something_is_told_what_helps_with_the_names_in_the_commands() {
        for (refusal, words) in refusals() {
            let next = refusal.next_step().unwrap_or_else(|| panic!("nothing helps: {refusal}"));
            assert!(next.contains(words), "{refusal}: {next}");
            assert!(!next.contains("  ") && !next.contains('\n') && !next.ends_with('.'), "one line: {next}");
        }
    }

    #[test]
    fn a_volume_whose_key_is_destroyed_is_lost_data() {
        assert_eq!(Refusal::KeyDestroyed("disk0".to_owned()).kind(), FailureKind::Data);
    }

    #[test]
    fn what_users_wrote_does_not_change_what_they_are_told() {
        let volume = "disk0".to_owned();
        let from = "nbd://'other' is attached; flatten it first; is exported".to_owned();
        let misleading = Refusal::OtherSource { volume: volume.clone(), from };
        let plain = Refusal::OtherSource { volume, from: "nbd://there".to_owned() };
        assert_eq!(misleading.next_step(), plain.next_step());
        let misleading = Refusal::Open { name: "disk0".to_owned(), owner: "'other' is exported".to_owned() };
        assert!(misleading.next_step().unwrap().contains("volume attach disk0 --force"));
        let unknown = Refusal::NoSuchVolume("has no snapshot 'x'".to_owned());
        assert_eq!((unknown.kind(), unknown.next_step()), (FailureKind::NotFound, None));
    }
}
