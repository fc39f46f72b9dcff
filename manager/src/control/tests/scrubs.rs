//! Scrubs with an engine that only says what it is told to say.

use super::{ID, IN_SYNC, World, words};
use crate::control::scrubs::SCRUB_BYTES_PER_SECOND_DEFAULT;
use crate::records::{self, ScrubRecord};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use trivet_api::v1;
use trivet_api::v1::scrub_volume_request::Action;

fn request(action: Action) -> v1::ScrubVolumeRequest {
    v1::ScrubVolumeRequest { name: "data".into(), action: action.into(), ..v1::ScrubVolumeRequest::default() }
}

impl World {
    fn scrub(&self) -> ScrubRecord {
        records::read(self.store(), &ID.to_string()).unwrap().unwrap().0
    }

    fn engine(&self) -> UnixListener {
        UnixListener::bind(self.control.layout.engine_control_socket("data").unwrap()).unwrap()
    }

    /// A round; answers what the engine was told, to which it says `scrub`.
    async fn scrub_round(&mut self, engine: &UnixListener, scrub: impl Fn(&Value) -> Value) -> Value {
        let served = async {
            let (stream, _) = engine.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let wanted: Value = serde_json::from_str(&line).unwrap();
            let volume = json!({ "scrub": scrub(&wanted["scrub"]) });
            let report = json!({ "state": "open", "serving": true, "connections": 0, "volume": volume });
            stream.into_inner().write_all(report.to_string().as_bytes()).await.unwrap();
            wanted
        };
        self.control.follow_scrubs().await;
        let wanted = served.await;
        // The round has ended when the next may begin.
        while self.control.scrubs.is_busy() {
            tokio::task::yield_now().await;
        }
        wanted
    }
}

/// The engine's word on a scrub.
fn at(order: &Value, position: u64, finished: bool) -> Value {
    json!({
        "run": order["run"], "finished": finished, "position": position, "bytes_per_second": 1,
        "seconds_left": null, "waits": null,
        "counts": { "compared": position, "repaired": 1, "mismatched": 0, "unrepairable": 0, "unrepairable_blocks": [] },
    })
}

#[tokio::test]
async fn a_scrub_is_followed_resumed_and_ends() {
    let mut world = World::new(2, &[IN_SYNC, IN_SYNC]).await;
    let refused = words(world.control.scrub_volume(&request(Action::Start)).await);
    assert!(refused.contains("is not attached for writing"), "{refused}");
    world.attach();
    world.control.scrub_volume(&request(Action::Start)).await.unwrap();
    world.control.scrub_volume(&request(Action::Start)).await.unwrap();
    assert_eq!(world.scrub().runs, 1, "one at a time");
    let engine = world.engine();
    let wanted = world.scrub_round(&engine, |order| at(order, 400, false)).await;
    let rate = SCRUB_BYTES_PER_SECOND_DEFAULT;
    assert_eq!(
        (&wanted["scrub"]["position"], &wanted["scrub"]["bytes_per_second"]),
        (&0.into(), &rate.into())
    );
    // Another engine, which knows nothing, is told where to go on, and with what was found.
    let wanted = world.scrub_round(&engine, |_| Value::Null).await;
    assert_eq!(
        (&wanted["scrub"]["position"], &wanted["scrub"]["counts"]["repaired"]),
        (&400.into(), &1.into())
    );
    world.scrub_round(&engine, |order| at(order, 1024, true)).await;
    let record = world.scrub();
    let last = record.last.unwrap();
    assert_eq!((record.running, last.run, last.counts.compared), (None, 1, 1024));
    let wanted = world.scrub_round(&engine, |_| Value::Null).await;
    assert_eq!(wanted["scrub"], Value::Null, "nothing more is wanted of it");
}

#[tokio::test]
async fn a_scrub_begins_when_its_time_has_come_and_is_ended_for_good() {
    let mut world = World::new(2, &[IN_SYNC, IN_SYNC]).await;
    let every = v1::ScrubVolumeRequest { every_seconds: Some(3600), ..request(Action::Unspecified) };
    world.control.scrub_volume(&every).await.unwrap();
    let (scheduled, revision) =
        records::read::<ScrubRecord>(world.store(), &ID.to_string()).unwrap().unwrap();
    assert_eq!((scheduled.every_seconds, &scheduled.running), (Some(3600), &None));
    let overdue = ScrubRecord { scheduled_at: scheduled.scheduled_at - 3600, ..scheduled };
    records::write(world.store(), &overdue, Some(revision)).unwrap();
    world.attach();
    let engine = world.engine();
    let wanted = world.scrub_round(&engine, |order| at(order, 0, false)).await;
    assert_eq!(wanted["scrub"]["run"], 1);
    drop(engine);
    world.control.scrub_volume(&request(Action::Stop)).await.unwrap();
    let never = v1::ScrubVolumeRequest { every_seconds: Some(0), ..request(Action::Unspecified) };
    world.control.scrub_volume(&never).await.unwrap();
    let record = world.scrub();
    assert_eq!((record.every_seconds, record.running, record.last), (None, None, None));
}
