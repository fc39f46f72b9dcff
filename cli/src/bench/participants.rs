//! Which processes take part in a measurement.

use super::cpu::Participant;
use super::target::Target;
use crate::args::Place;
use crate::view::{self, ClusterView, VolumeView};
use trivet_api::v1;

/// This process; and of the cluster, the volume's engine and replica servers. A server that is no
/// cluster's of ours is known by its socket alone.
pub(super) async fn find(place: &Place, target: &Target) -> Vec<Participant> {
    let mut found = vec![Participant { name: "bench".to_owned(), pid: std::process::id() }];
    if let Some(cluster) = ask(place).await
        && let Some(volume) = cluster.volumes.iter().find(|volume| is_meant(volume, target))
    {
        let engine = volume.engine.as_ref().and_then(|engine| engine.pid);
        found.extend(engine.map(|pid| Participant { name: format!("engine-{}", volume.name), pid }));
        found.extend(members(&cluster, volume));
    } else if let Some(pid) = target.server_pid() {
        found.push(Participant { name: "server".to_owned(), pid });
    }
    found
}

async fn ask(place: &Place) -> Option<ClusterView> {
    let (client, _) = place.connect().ok()?;
    view::cluster(client.get_status(v1::GetStatusRequest {}).await.ok()?).ok()
}

fn is_meant(volume: &VolumeView, target: &Target) -> bool {
    match target {
        Target::Nbd(nbd) => {
            let uri = nbd.socket.as_ref().map(|socket| trivet_nbd::unix_uri(&volume.name, socket));
            uri.is_some() && uri == volume.uri
        }
        Target::Embedded(embedded) => embedded.volume == volume.name,
    }
}

fn members(cluster: &ClusterView, volume: &VolumeView) -> Vec<Participant> {
    let is_member =
        |pool: &Option<String>| volume.members.iter().any(|member| Some(&member.replica) == pool.as_ref());
    cluster
        .replicas
        .iter()
        .filter(|replica| is_member(&replica.pool))
        .filter_map(|replica| Some(Participant { name: replica.name.clone(), pid: replica.process.pid? }))
        .collect()
}
