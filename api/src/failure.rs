//! A failed call: its kind and words, carried in a gRPC status and back.

use crate::v1;
use prost::Message;
use tonic::{Code, Status};

/// What sort of failure a call met. Exit codes hang on it, and what helps where nothing better is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureKind {
    /// What was named does not exist.
    NotFound,
    /// What was to be made is there already.
    Exists,
    /// It is being used and the call would pull it away.
    InUse,
    /// The request makes no sense, whatever the cluster's state.
    Invalid,
    /// A replica server does not answer, or refused.
    Replica,
    /// No space is left where it is needed.
    NoSpace,
    /// The record has changed; the revision found.
    Conflict {
        /// The record's present revision.
        revision: u64,
    },
    /// What is stored can be read no more.
    Data,
    /// The manager itself failed.
    Internal,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The manager answered that it cannot.
    #[error("{message}")]
    Refused {
        /// The sort.
        kind: FailureKind,
        /// What happened, for people.
        message: String,
        /// What helps, in words, with commands; `None` where the kind says enough.
        next: Option<String>,
    },
    /// No manager answers. Whether a change took place is unknown.
    #[error("no manager answers at {address}: {cause}")]
    Unreachable {
        /// The socket or address tried.
        address: String,
        /// The system's or the transport's words.
        cause: String,
    },
    /// The manager answered something that this version does not understand.
    #[error("the manager's answer makes no sense: {0}")]
    Malformed(#[from] crate::MalformedRecord),
}

impl ApiError {
    /// The kind of a refusal; `None` for the rest.
    #[must_use]
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            Self::Unreachable { .. } | Self::Malformed(_) => None,
        }
    }

    pub(crate) fn from_status(address: &str, status: &Status) -> Self {
        match v1::Failure::decode(status.details()) {
            Ok(failure) if !status.details().is_empty() => Self::Refused {
                kind: kind_from_wire(&failure),
                message: status.message().to_owned(),
                next: Some(failure.next).filter(|next| !next.is_empty()),
            },
            // A refusal always has details; what has none comes from the transport, which reports
            // a connection that broke in mid-call under several codes.
            Ok(_) | Err(_) => Self::Unreachable { address: address.to_owned(), cause: deepest_cause(status) },
        }
    }
}

fn kind_from_wire(failure: &v1::Failure) -> FailureKind {
    match failure.kind() {
        v1::failure::Kind::NotFound => FailureKind::NotFound,
        v1::failure::Kind::Exists => FailureKind::Exists,
        v1::failure::Kind::InUse => FailureKind::InUse,
        v1::failure::Kind::Invalid => FailureKind::Invalid,
        v1::failure::Kind::Replica => FailureKind::Replica,
        v1::failure::Kind::NoSpace => FailureKind::NoSpace,
        v1::failure::Kind::Conflict => FailureKind::Conflict { revision: failure.revision },
        v1::failure::Kind::Data => FailureKind::Data,
        v1::failure::Kind::Unspecified | v1::failure::Kind::Internal => FailureKind::Internal,
    }
}

/// The transport wraps the system's error several layers deep; people need the innermost.
fn deepest_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(std::ptr::from_ref(cause), std::ptr::from_ref(status)) {
        status.message().to_owned()
    } else {
        cause.to_string()
    }
}

/// A refusal as a gRPC status, for the server's side: what happened, and what helps where the kind does not say
/// enough.
#[must_use]
pub fn refusal(kind: FailureKind, message: &str, next: Option<String>) -> Status {
    let (code, wire) = match kind {
        FailureKind::NotFound => (Code::NotFound, v1::failure::Kind::NotFound),
        FailureKind::Exists => (Code::AlreadyExists, v1::failure::Kind::Exists),
        FailureKind::InUse => (Code::FailedPrecondition, v1::failure::Kind::InUse),
        FailureKind::Invalid => (Code::InvalidArgument, v1::failure::Kind::Invalid),
        FailureKind::Replica => (Code::FailedPrecondition, v1::failure::Kind::Replica),
        FailureKind::NoSpace => (Code::ResourceExhausted, v1::failure::Kind::NoSpace),
        FailureKind::Conflict { .. } => (Code::Aborted, v1::failure::Kind::Conflict),
        FailureKind::Data => (Code::DataLoss, v1::failure::Kind::Data),
        FailureKind::Internal => (Code::Internal, v1::failure::Kind::Internal),
    };
    let revision = if let FailureKind::Conflict { revision } = kind { revision } else { 0 };
    let details = v1::Failure { kind: wire.into(), revision, next: next.unwrap_or_default() }.encode_to_vec();
    Status::with_details(code, message, details.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way_through_a_status() {
        for kind in [
            FailureKind::NotFound,
            FailureKind::Exists,
            FailureKind::InUse,
            FailureKind::Invalid,
            FailureKind::Replica,
            FailureKind::NoSpace,
            FailureKind::Conflict { revision: 7 },
            FailureKind::Data,
            FailureKind::Internal,
        ] {
            let error = ApiError::from_status("sock", &refusal(kind, "because", None));
            assert_eq!(error.kind(), Some(kind));
            assert_eq!(error.to_string(), "because");
        }
    }

    #[test]
    fn what_helps_survives_the_way_through_a_status() {
        for wanted in [None, Some("wait: trivet volume show 'ünïcode'".to_owned())] {
            let status = refusal(FailureKind::InUse, "because", wanted.clone());
            let ApiError::Refused { message, next, .. } = ApiError::from_status("sock", &status) else {
                panic!("it is a refusal");
            };
            assert_eq!((message.as_str(), next), ("because", wanted));
        }
    }

    #[test]
    fn a_broken_connection_is_no_refusal() {
        let error = ApiError::from_status("/x/manager.sock", &Status::unknown("transport error"));
        assert!(error.kind().is_none());
        assert_eq!(error.to_string(), "no manager answers at /x/manager.sock: transport error");
    }
}
